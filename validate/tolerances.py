"""What parity asks of each precision, with the measurement behind every bound."""
from __future__ import annotations

from msgspec import Struct


class Tolerance(Struct, frozen=True, kw_only=True):
    """Bounds of the five numbers; cosines are given as distances, 1 - cosine."""

    score_error: float  # share of the score map's standard deviation
    regret: float
    cls: float  # cosine distances under the reference's own selection, worst image
    prefix: float
    patches: float  # mean over patches
    patches_p1: float  # the 1st percentile of the cosines, as a distance
    free_running: float  # relative difference |a - b| / |b| of each feature, worst image


# fp32, measured on ViT-B with both CPU engines on photographs, noise and flat images, 224 to 1036 px, batch 1 to 4, k from
# 1 to all: score error 1.2e-5 of the deviation, regret 0, cosine distances 1.1e-12, free-running differences 1.7e-6.
# Mistakes that must not pass: tanh GELU (cosines from 7e-9, free-running 2e-4), LayerNorm with eps 1e-5 instead of 1e-6
# in the selector (6e-5); in the extractor alone it moves the features by 4e-6, too near to the noise for any bound.
# The regret is what swaps within twice the score error can give away where k is 1 and the best patch lies one deviation
# above the mean; with more patches it shrinks like 1/k.
#
# The others, measured on ViT-B at 224, 518 and 1036 px on twelve photographs and on the golden images, which are no
# photographs; int8 and fp8 calibrated on 14 and 56 crops of other photographs. Bounds are two to four times the worst seen:
#
#       score error  regret   cls      prefix   patches  1st perc.  free-running
# fp16  0.0024       6.4e-6   1.4e-7   2.7e-7   2.3e-7   3.4e-7     7.4e-4
# bf16  0.041        1.3e-4   5.5e-5   4.5e-5   6.0e-5   8.6e-5     0.013      (as OpenVINO's hint and as a graph)
# int8  0.093        5.9e-4   3.0e-4   5.7e-4   3.9e-4   1.3e-3     0.031      (OpenVINO, ONNX Runtime, as written)
# fp8   0.17         3.3e-3   8.9e-4   2.1e-3   1.3e-3   2.4e-3     0.061      (as written)
#
# Channels 50 times larger than the rest, without smoothing, give an int8 score error of 0.6 to 1.0 and cls distances from
# 2e-2: far beyond these bounds. With it they give the numbers of the table.
TOLERANCES = {
    "fp32": Tolerance(
        score_error=5e-4, regret=1e-3, cls=1e-9, prefix=1e-9, patches=1e-9, patches_p1=1e-9, free_running=1e-5
    ),
    "fp16": Tolerance(
        score_error=1e-2, regret=1e-3, cls=1e-6, prefix=1e-6, patches=1e-6, patches_p1=2e-6, free_running=3e-3
    ),
    "bf16": Tolerance(
        score_error=1e-1, regret=1e-3, cls=2e-4, prefix=2e-4, patches=2e-4, patches_p1=3e-4, free_running=4e-2
    ),
    "int8": Tolerance(
        score_error=2e-1, regret=2e-3, cls=5e-4, prefix=2e-3, patches=1e-3, patches_p1=2.5e-3, free_running=6e-2
    ),
    "fp8": Tolerance(
        score_error=5e-1, regret=1e-2, cls=3e-3, prefix=6e-3, patches=4e-3, patches_p1=7e-3, free_running=2e-1
    ),
}

# The free-running difference may be this many times the measured float32 noise where that is above the bound.
FLOOR_FACTOR = 10.0


class BackboneTolerance(Struct, frozen=True, kw_only=True):
    """Bounds of a plain backbone's six numbers, worst image; cosines are given as distances, 1 - cosine."""

    cls: float
    patches: float  # mean over patches
    patches_p1: float  # the 1st percentile of the cosines, as a distance
    cls_last4: float  # worst of the four blocks
    attention: float  # half the sum of the differences, worst head
    difference: float  # relative difference |a - b| / |b| of each output


# Worst seen on seeded ViT-S/16, ViT-S/14 and ViT-B/14, the last two with registers, at 224 to 518 px, on photographs and
# golden images: fp32 on both CPU engines, the rest as the graphs are written. int8 and fp8 are worst on ViT-S/16, with 18
# to 96 crops alike; on the others they are a third of that (int8: cls 5.9e-4, patches 3.5e-4).
#
#       cls      patches  1st perc.  cls_last4  attention  difference
# fp32  1.1e-12  4.9e-13  7.1e-13    1.1e-12    1.1e-6     1.6e-6
# fp16  3.9e-7   2.5e-7   4.0e-7     4.1e-7     7.7e-4     9.1e-4
# bf16  1.1e-4   6.1e-5   8.8e-5     1.1e-4     0.011      0.016
# int8  2.1e-3   1.9e-3   3.0e-3     2.2e-3     0.028      0.064
# fp8   4.0e-3   3.6e-3   4.6e-3     4.1e-3     0.051      0.090
#
# Mistakes that must not pass in fp32: tanh GELU (cosines from 7e-9, difference 2e-4), LayerNorm with eps 1e-5 (4e-10 of cls,
# 1.2e-5 of the attention, difference 3e-5; in the last norm alone 6e-7 to 4e-6, too near to the noise for any bound),
# positions resized by another rule (cosines from 2e-5, difference 0.02). Bounds are two to four times the worst seen, in
# fp32 six and more.
BACKBONE_TOLERANCES = {
    "fp32": BackboneTolerance(
        cls=1e-10, patches=1e-10, patches_p1=1e-10, cls_last4=1e-10, attention=1e-5, difference=1e-5
    ),
    "fp16": BackboneTolerance(cls=1e-6, patches=1e-6, patches_p1=2e-6, cls_last4=1e-6, attention=3e-3, difference=3e-3),
    "bf16": BackboneTolerance(cls=3e-4, patches=2e-4, patches_p1=3e-4, cls_last4=3e-4, attention=4e-2, difference=4e-2),
    "int8": BackboneTolerance(cls=5e-3, patches=5e-3, patches_p1=8e-3, cls_last4=5e-3, attention=1e-1, difference=2e-1),
    "fp8": BackboneTolerance(cls=1e-2, patches=1e-2, patches_p1=1.5e-2, cls_last4=1e-2, attention=2e-1, difference=3e-1),
}
