"""Build the C++ kernels of `runtime/native` into `saccade.runtime._kernels`; everything else is in setup.cfg."""
import os
import shutil
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_py import build_py

NATIVE = Path("runtime/native")
# By name, because the sources of the C library lie beside those of the kernels.
SOURCES = (
    "src/bicubic.cpp",
    "src/fill.cpp",
    "src/gather.cpp",
    "src/positions.cpp",
    "src/resize.cpp",
    "src/select.cpp",
    "python/module.cpp",
)

kernels = Pybind11Extension(
    "saccade.runtime._kernels",
    [str(NATIVE / source) for source in SOURCES],
    include_dirs=[str(NATIVE / "src")],
    depends=sorted(str(path) for path in NATIVE.glob("src/*.hpp")),
    cxx_std=17,
    # Contracting a*b+c into one rounding would make the kernels differ from the NumPy reference in the last bit.
    extra_compile_args=["-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wpedantic"],
)


class BuildWithFatbin(build_py):
    """Take the CUDA kernels along where `make cuda` has compiled them, under the name that `runtime/launch.py` reads."""

    def run(self) -> None:
        """Copy the modules, and then the fatbin; an editable install reads it where it was compiled."""
        super().run()
        fatbin = Path(os.environ.get("SACCADE_FATBIN", "build/cuda/saccade.fatbin"))
        if fatbin.is_file() and not self.editable_mode:
            shutil.copyfile(fatbin, Path(self.build_lib) / "saccade/runtime/saccade.fatbin")


setup(ext_modules=[kernels], cmdclass={"build_py": BuildWithFatbin})
