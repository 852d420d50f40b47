#include "device_chain.hpp"

#include <algorithm>
#include <cstring>

namespace saccade {
namespace {

static_assert(MAX_GRID_CELLS <= cuda::MAX_GRID_CELLS, "any grid of a plan can be ranked");

constexpr std::size_t ALIGNMENT = 256;  // of each array, as the driver aligns memory

constexpr std::size_t aligned(std::size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

std::size_t batch_bytes(const Plan& plan) { return aligned(static_cast<std::size_t>(plan.batch) * plan.pixel_bytes()); }

std::size_t image_bytes(const Plan& plan) {
    return batch_bytes(plan) + static_cast<std::size_t>(plan.batch) * sizeof(cuda::ImageView);
}

void pack(const Image& image, std::uint8_t* to) {
    const std::size_t row_bytes = std::size_t{3} * static_cast<std::size_t>(image.width);
    for (int row = 0; row < image.height; ++row) {
        std::copy_n(image.pixels + row * image.row_stride, row_bytes, to + static_cast<std::size_t>(row) * row_bytes);
    }
}

}  // namespace

// Arrays side by side in one block.
struct DeviceChain::Layout {
    std::size_t size = 0;

    Part add(std::size_t count) {
        const Part part{size, count};
        size += aligned(part.bytes());
        return part;
    }
};

// Waits for the stream whatever happens: what it was given reads and writes this chain's memory.
struct DeviceChain::Settled {
    const Device& device;
    void* stream;
    ~Settled() {
        try {
            device.synchronize(stream);
        } catch (...) {  // the device is gone, and what it was doing with it
        }
    }
};

DeviceChain::DeviceChain(const LoadedModel& model)
    : model_(model),
      manifest_(model.manifest),
      device_(model.engine->device()),
      stream_(device_),
      table_(device_, DeviceMemory::Kind::device),
      grid_positions_(device_, DeviceMemory::Kind::device),
      staging_(device_, DeviceMemory::Kind::pinned),
      images_(device_, DeviceMemory::Kind::device),
      inputs_(device_, DeviceMemory::Kind::device),
      results_(device_, DeviceMemory::Kind::device),
      fetched_(device_, DeviceMemory::Kind::pinned),
      selector_(model.engine->network(Role::selector, stream_.handle())),
      extractor_(model.engine->network(Role::extractor, stream_.handle())) {
    const Device::Current current(*device_);
    const Settled settled{*device_, stream_.handle()};
    constexpr std::size_t table_bytes = 3 * 256 * sizeof(float);
    device_->copy_in(table_.sized(table_bytes), model.table, table_bytes, stream_.handle());
    device_->synchronize(stream_.handle());
}

std::uint8_t* DeviceChain::pixels(const Plan& plan) {
    const Device::Current current(*device_);
    return reinterpret_cast<std::uint8_t*>(staging_.sized(image_bytes(plan)));
}

void DeviceChain::run(const Plan& plan, const std::vector<Image>& images, const saccade_outputs& out) {
    const PositionTable& positions = all_positions_.on(model_, plan.grid);
    const Device::Current current(*device_);
    const Settled settled{*device_, stream_.handle()};
    keep_positions(positions);
    lay_out(plan, out.dense != nullptr);
    upload(plan, images);
    enqueue_selector(plan);
    enqueue_extractor(plan);
    if (out.dense != nullptr) {
        enqueue_fill(plan);
    }
    fetch(plan, out);
}

void DeviceChain::look(const Plan& plan, const std::vector<Image>& images, const saccade_outputs& out) {
    const Device::Current current(*device_);
    const Settled settled{*device_, stream_.handle()};
    lay_out(plan, false);
    upload(plan, images);
    enqueue_selector(plan);
    fetch(plan, out);
}

// Waits for a table's upload: it happens once for each grid, and memory may grow after it.
void DeviceChain::keep_positions(const PositionTable& positions) {
    if (positions != kept_) {
        const std::size_t bytes = positions->size() * sizeof(float);
        kept_.reset();
        device_->copy_in(grid_positions_.sized(bytes), positions->data(), bytes, stream_.handle());
        device_->synchronize(stream_.handle());
        kept_ = positions;
    }
}

void DeviceChain::write(const Plan&, const saccade_outputs& out) {
    each_wanted(out, [&](const Part& part, void* to) { std::memcpy(to, fetched_.data() + part.offset, part.bytes()); });
}

// Makes room for all of a call's arrays, while the stream has nothing that uses the room of the call before.
void DeviceChain::lay_out(const Plan& plan, bool dense) {
    const Model& model = manifest_.model;
    const saccade_sizes sizes = sizes_of(manifest_, plan);
    const auto batch = static_cast<std::size_t>(plan.batch), kept = batch * static_cast<std::size_t>(plan.k);
    const auto size = static_cast<std::size_t>(model.selector_size);
    Layout inputs, results;
    lowres_ = inputs.add(batch * 3 * size * size);
    patches_ = inputs.add(kept * static_cast<std::size_t>(model.patch_pixels()));
    positions_ = inputs.add(kept * static_cast<std::size_t>(model.dim));
    status_ = results.add(batch);
    indices_ = results.add(sizes.indices);
    score_map_ = results.add(sizes.score_map);
    raw_score_map_ = results.add(sizes.raw_score_map);
    prefix_ = results.add(sizes.prefix);
    pooled_ = results.add(sizes.cls + sizes.logits);  // a task has one of them at most
    tokens_ = results.add(sizes.tokens);
    dense_ = results.add(dense ? sizes.dense : 0);
    pixels(plan);
    images_.sized(image_bytes(plan));
    inputs_.sized(inputs.size);
    results_.sized(results.size);
    fetched_.sized(results.size);
}

const cuda::ImageView* DeviceChain::views(const Plan& plan) const {
    return reinterpret_cast<const cuda::ImageView*>(images_.data() + batch_bytes(plan));
}

void DeviceChain::upload(const Plan& plan, const std::vector<Image>& images) {
    auto* staged = reinterpret_cast<std::uint8_t*>(staging_.data());
    const auto* on_device = reinterpret_cast<const std::uint8_t*>(images_.data());
    auto* views = reinterpret_cast<cuda::ImageView*>(staged + batch_bytes(plan));
    for (std::size_t i = 0; i < images.size(); ++i) {
        const std::size_t offset = i * plan.pixel_bytes();
        if (images[i].pixels != staged + offset) {
            pack(images[i], staged + offset);
        }
        views[i] = {on_device + offset, 3 * std::int64_t{plan.width}, plan.height, plan.width, images[i].bgr ? 1 : 0, 0};
    }
    device_->copy_in(images_.data(), staged, image_bytes(plan), stream_.handle());
}

void DeviceChain::enqueue_selector(const Plan& plan) {
    const Model& model = manifest_.model;
    const std::int64_t batch = plan.batch, size = model.selector_size, map = model.map_size;
    const cuda::PreprocessParams preprocess{views(plan), reinterpret_cast<const float*>(table_.data()), input(lowres_), plan.batch,
                                            model.selector_size};
    device_->launch(cuda::PREPROCESS_FP32, &preprocess, cuda::preprocess_launch(preprocess), stream_.handle());
    const Array inputs[] = {{"lowres", input(lowres_), 4, {batch, 3, size, size}}};
    const Array outputs[] = {{"score_map", result(raw_score_map_), 3, {batch, map, map, 0}},
                              {"prefix", result(prefix_), 3, {batch, model.prefix, model.dim, 0}}};
    selector_->run({inputs, 1}, {outputs, 2});
    const cuda::SelectParams select{result(raw_score_map_), result(score_map_), numbers(indices_), numbers(status_), plan.batch,
                                    model.map_size, plan.grid.rows, plan.grid.columns, plan.k, 0};
    device_->launch(cuda::RESIZE_SCORES, &select, cuda::resize_scores_launch(select), stream_.handle());
    device_->launch(cuda::RANK, &select, cuda::rank_launch(select), stream_.handle());
}

void DeviceChain::enqueue_extractor(const Plan& plan) {
    const Model& model = manifest_.model;
    const std::int64_t batch = plan.batch, k = plan.k, channels = manifest_.token_channels();
    const cuda::GatherParams gather{views(plan), table_.data(), grid_positions_.data(), numbers(indices_), input(patches_),
                                    input(positions_), plan.batch, plan.k, model.patch, plan.grid.columns, model.dim, 0};
    device_->launch(cuda::GATHER_32BIT, &gather, cuda::gather_launch(gather), stream_.handle());
    const bool classifies = manifest_.task == Task::classify;
    const Array inputs[] = {{"patches", input(patches_), 3, {batch, k, model.patch_pixels(), 0}},
                             {"positions", input(positions_), 3, {batch, k, model.dim, 0}},
                             {"prefix", result(prefix_), 3, {batch, model.prefix, model.dim, 0}}};
    const Array outputs[] = {{"tokens", result(tokens_), 3, {batch, k, channels, 0}},
                              {classifies ? "logits" : "cls", result(pooled_), 2, {batch, classifies ? model.classes : model.dim, 0, 0}}};
    extractor_->run({inputs, 3}, {outputs, manifest_.task == Task::segment ? std::size_t{1} : std::size_t{2}});
}

void DeviceChain::enqueue_fill(const Plan& plan) {
    const cuda::FillParams fill{result(tokens_), numbers(indices_), result(dense_), plan.batch, plan.k, manifest_.token_channels(),
                                plan.grid.rows, plan.grid.columns, 0};
    device_->launch(cuda::FILL, &fill, cuda::fill_launch(fill), stream_.handle());
}

// Waits for the results, and looks at what the ranking says of each image.
void DeviceChain::fetch(const Plan& plan, const saccade_outputs& out) {
    const auto copy = [&](const Part& part) {
        device_->copy_out(fetched_.data() + part.offset, results_.data() + part.offset, part.bytes(), stream_.handle());
    };
    copy(status_);
    each_wanted(out, [&](const Part& part, void*) { copy(part); });
    device_->synchronize(stream_.handle());
    const auto* status = reinterpret_cast<const std::int32_t*>(fetched_.data() + status_.offset);
    for (int i = 0; i < plan.batch; ++i) {
        if (status[i] != 0) {
            refuse_scores(i);
        }
    }
}

template <typename Visit>
void DeviceChain::each_wanted(const saccade_outputs& out, Visit visit) const {
    const struct {
        const Part& part;
        void* to;
    } all[] = {{indices_, out.indices}, {score_map_, out.score_map}, {raw_score_map_, out.raw_score_map}, {prefix_, out.prefix},
               {pooled_, out.cls},      {pooled_, out.logits},       {tokens_, out.tokens},               {dense_, out.dense}};
    for (const auto& each : all) {
        if (each.to != nullptr) {
            visit(each.part, each.to);
        }
    }
}

}  // namespace saccade
