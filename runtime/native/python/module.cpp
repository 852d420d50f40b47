// saccade.runtime._kernels: the kernels for NumPy arrays, writing into arrays that the caller gives.
//
// Only the door: it refuses whatever could read or write outside an array (ValueError), releases the GIL and calls.
#include <pybind11/pybind11.h>
#include <pybind11/numpy.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <utility>

#include "kernels.hpp"

namespace py = pybind11;

namespace door {  // not anonymous: `select` would be ambiguous with POSIX's
namespace {

using Size = py::ssize_t;

std::string shape_text(const Size* begin, const Size* end) {
    std::string text = "(";
    for (const Size* extent = begin; extent != end; ++extent) {
        text += std::to_string(*extent) + (extent + 1 == end ? "" : ", ");
    }
    return text + ")";
}

[[noreturn]] void refuse(const char* name, const std::string& wanted, const py::array& array) {
    const auto dtype = py::str(array.dtype()).cast<std::string>();
    throw py::value_error(std::string(name) + " must be " + wanted + ", got " + dtype + " " +
                          shape_text(array.shape(), array.shape() + array.ndim()));
}

// The data of a C-contiguous array of exactly this type and shape.
template <typename T>
const T* input(const char* name, const py::array& array, std::initializer_list<Size> shape) {
    const bool fits = py::isinstance<py::array_t<T>>(array) && (array.flags() & py::array::c_style) != 0 &&
                      array.ndim() == static_cast<Size>(shape.size()) &&
                      std::equal(shape.begin(), shape.end(), array.shape()) &&
                      reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) == 0;
    if (!fits) {
        const auto dtype = py::str(py::dtype::of<T>()).cast<std::string>();
        refuse(name, "contiguous " + dtype + " " + shape_text(shape.begin(), shape.end()), array);
    }
    return static_cast<const T*>(array.data());
}

template <typename T>
T* output(const char* name, py::array& array, std::initializer_list<Size> shape) {
    input<T>(name, array, shape);
    if (!array.writeable()) {
        refuse(name, "writeable", array);
    }
    return static_cast<T*>(array.mutable_data());
}

int extent(const char* name, Size value, int most = saccade::MAX_EXTENT) {
    if (value < 1 || value > most) {
        throw py::value_error(std::string(name) + ": extents must be 1 to " + std::to_string(most) + ", got " +
                              std::to_string(value));
    }
    return static_cast<int>(value);
}

// The extent of one axis of an array whose shape is checked later.
int axis(const char* name, const py::array& array, Size index, int most = saccade::MAX_EXTENT) {
    if (array.ndim() <= index) {
        throw py::value_error(std::string(name) + " must have more than " + std::to_string(index) + " axes");
    }
    return extent(name, array.shape(index), most);
}

saccade::Grid grid_of(const std::pair<Size, Size>& size) {
    const saccade::Grid grid{extent("grid rows", size.first), extent("grid columns", size.second)};
    if (size.first * size.second > saccade::MAX_CELLS) {
        throw py::value_error("the grid must have at most " + std::to_string(saccade::MAX_CELLS) + " cells");
    }
    return grid;
}

// Rows may lie anywhere in memory, pixels may not; their channels may run backwards, as in `bgr[..., ::-1]`.
saccade::Image image_of(const py::array& image, int most = saccade::MAX_EXTENT) {
    const bool fits = py::isinstance<py::array_t<std::uint8_t>>(image) && image.ndim() == 3 && image.shape(2) == 3 &&
                      (image.size() == 0 || ((image.strides(2) == 1 || image.strides(2) == -1) &&
                                             (image.strides(1) == 3 || image.shape(1) == 1)));
    if (!fits) {
        refuse("image", "uint8 (height, width, 3) with packed pixels", image);
    }
    const bool bgr = image.strides(2) == -1;
    const auto* red = static_cast<const std::uint8_t*>(image.data());
    return {bgr ? red - 2 : red, axis("image", image, 0, most), axis("image", image, 1, most), image.strides(0), bgr};
}

// Kept cells: every index names one of `cells` cells.
std::pair<const std::int32_t*, int> kept(const py::array& indices, Size cells) {
    const Size k = indices.ndim() == 1 ? indices.shape(0) : 0;
    const auto* begin = input<std::int32_t>("indices", indices, {k});
    if (k > std::numeric_limits<std::int32_t>::max()) {
        throw py::value_error("indices must hold less than 2^31 cells");
    }
    for (const auto* index = begin; index != begin + k; ++index) {
        if (*index < 0 || *index >= cells) {
            throw py::value_error("indices must be in 0.." + std::to_string(cells - 1));
        }
    }
    return {begin, static_cast<int>(k)};
}

void normalization_table(const py::array& mean, const py::array& std, py::array out) {
    const auto* means = input<float>("mean", mean, {3});
    const auto* deviations = input<float>("std", std, {3});
    saccade::normalization_table(means, deviations, output<float>("out", out, {3, 256}));
}

void lowres_from_image(const py::array& image, const py::array& table, py::array out) {
    const auto pixels = image_of(image);
    const auto* values = input<float>("table", table, {3, 256});
    const int size = axis("out", out, 1);
    auto* result = output<float>("out", out, {3, size, size});
    py::gil_scoped_release unlocked;
    saccade::Scratch scratch;
    saccade::lowres_from_image(pixels, values, size, result, scratch);
}

void resize_bicubic(const py::array& image, std::pair<Size, Size> size, std::pair<Size, Size> corner, py::array out) {
    constexpr int MOST = saccade::MAX_RESIZED;
    const auto pixels = image_of(image, MOST);
    if (pixels.bgr) {  // channels keep their order in memory, which `out` cannot say
        refuse("image", "RGB", image);
    }
    const saccade::Size to{extent("height", size.first, MOST), extent("width", size.second, MOST)};
    const int height = axis("out", out, 0, MOST);
    const int width = axis("out", out, 1, MOST);
    const auto [top, left] = corner;
    if (top < 0 || left < 0 || top > to.height - height || left > to.width - width) {
        throw py::value_error("the window is larger than the resized image or not inside it");
    }
    auto* result = output<std::uint8_t>("out", out, {height, width, 3});
    py::gil_scoped_release unlocked;
    saccade::Scratch scratch;
    saccade::resize_bicubic(pixels, to, {static_cast<int>(top), static_cast<int>(left), height, width}, result, scratch);
}

void resize_scores(const py::array& score_map, py::array out) {
    const int map_size = axis("score_map", score_map, 0);
    const auto* map = input<float>("score_map", score_map, {map_size, map_size});
    const auto grid = grid_of({axis("out", out, 0), axis("out", out, 1)});
    auto* result = output<float>("out", out, {grid.rows, grid.columns});
    py::gil_scoped_release unlocked;
    saccade::Scratch scratch;
    saccade::resize_scores(map, map_size, grid, result, scratch);
}

bool select(const py::array& score_map, py::array indices, py::array scores) {
    const int map_size = axis("score_map", score_map, 0);
    const auto* map = input<float>("score_map", score_map, {map_size, map_size});
    const auto grid = grid_of({axis("scores", scores, 0), axis("scores", scores, 1)});
    auto* all = output<float>("scores", scores, {grid.rows, grid.columns});
    const Size k = indices.ndim() == 1 ? indices.shape(0) : 0;
    auto* best = output<std::int32_t>("indices", indices, {k});
    if (k < 1 || k > grid.cells()) {
        throw py::value_error("indices must hold 1 to " + std::to_string(grid.cells()) + " cells");
    }
    py::gil_scoped_release unlocked;
    saccade::Scratch scratch;
    return saccade::select(map, map_size, grid, static_cast<int>(k), best, all, scratch);
}

void normalize(const py::array& image, const py::array& table, py::array out) {
    const auto pixels = image_of(image);
    const auto* values = input<float>("table", table, {3, 256});
    auto* result = output<float>("out", out, {3, pixels.height, pixels.width});
    py::gil_scoped_release unlocked;
    saccade::normalize(pixels, values, result);
}

void gather_patches(const py::array& image, const py::array& table, const py::array& indices, Size patch_size,
                    std::pair<Size, Size> grid_size, py::array out) {
    const auto pixels = image_of(image);
    const auto* values = input<float>("table", table, {3, 256});
    const int patch = extent("patch", patch_size);
    const auto grid = grid_of(grid_size);
    if (grid.rows > pixels.height / patch || grid.columns > pixels.width / patch) {
        throw py::value_error("the grid of patches is larger than the image");
    }
    const auto [cells, k] = kept(indices, grid.cells());
    auto* result = output<float>("out", out, {k, Size{3} * patch * patch});
    py::gil_scoped_release unlocked;
    saccade::gather_patches(pixels, values, cells, k, patch, grid.columns, result);
}

void gather_positions(const py::array& positions, const py::array& indices, py::array out) {
    const int dim = axis("positions", positions, 1);
    const Size rows = positions.shape(0);
    const auto* table = input<float>("positions", positions, {rows, dim});
    const auto [cells, k] = kept(indices, rows);
    auto* result = output<float>("out", out, {k, dim});
    py::gil_scoped_release unlocked;
    saccade::gather_positions(table, dim, cells, k, result);
}

saccade::PositionRule rule_of(const std::string& name) {
    for (const auto& [known, rule] : {std::pair{"size", saccade::PositionRule::size},
                                      {"scale-factor", saccade::PositionRule::scale_factor},
                                      {"size-antialias", saccade::PositionRule::size_antialias}}) {
        if (name == known) {
            return rule;
        }
    }
    throw py::value_error("rule must be size, scale-factor or size-antialias, got " + name);
}

void interpolate_positions(const py::array& table, const std::string& rule_name, py::array out) {
    const auto rule = rule_of(rule_name);
    const int dim = axis("table", table, 2);
    const auto from = grid_of({axis("table", table, 0), axis("table", table, 1)});
    const auto* values = input<float>("table", table, {from.rows, from.columns, dim});
    const auto to = grid_of({axis("out", out, 0), axis("out", out, 1)});
    auto* result = output<float>("out", out, {to.rows, to.columns, dim});
    py::gil_scoped_release unlocked;
    saccade::interpolate_positions(values, from, dim, to, rule, result);
}

void fill(const py::array& tokens, const py::array& indices, py::array out) {
    const int channels = axis("tokens", tokens, 1);
    const auto grid = grid_of({axis("out", out, 1), axis("out", out, 2)});
    const auto [cells, k] = kept(indices, grid.cells());
    if (k < saccade::NEIGHBOURS) {
        throw py::value_error("indices must hold at least " + std::to_string(saccade::NEIGHBOURS) + " cells");
    }
    const auto* values = input<float>("tokens", tokens, {k, channels});
    auto* result = output<float>("out", out, {channels, grid.rows, grid.columns});
    py::gil_scoped_release unlocked;
    saccade::Scratch scratch;
    saccade::fill(values, cells, k, channels, grid, result, scratch);
}

}  // namespace
}  // namespace door

PYBIND11_MODULE(_kernels, module, py::mod_gil_not_used()) {  // no state of their own to guard
    using namespace py::literals;
    module.doc() = "The kernels of runtime/native for NumPy arrays; results are written into the last arguments.";
    module.def("normalization_table", &door::normalization_table, "mean"_a, "std"_a, "out"_a);
    module.def("lowres_from_image", &door::lowres_from_image, "image"_a, "table"_a, "out"_a);
    module.def("resize_bicubic", &door::resize_bicubic, "image"_a, "size"_a, "corner"_a, "out"_a);
    module.def("resize_scores", &door::resize_scores, "score_map"_a, "out"_a);
    module.def("select", &door::select, "score_map"_a, "indices"_a, "scores"_a);
    module.def("normalize", &door::normalize, "image"_a, "table"_a, "out"_a);
    module.def("gather_patches", &door::gather_patches, "image"_a, "table"_a, "indices"_a, "patch"_a, "grid"_a,
               "out"_a);
    module.def("gather_positions", &door::gather_positions, "positions"_a, "indices"_a, "out"_a);
    module.def("interpolate_positions", &door::interpolate_positions, "table"_a, "rule"_a, "out"_a);
    module.def("fill", &door::fill, "tokens"_a, "indices"_a, "out"_a);
}
