"""Evidence of the workbench's own folders: packed models and master weights."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from ternary_kernels.packing import unpack_portable
from torch import Tensor

from workbench.check.evidence import Matrix, TernaryCheck, not_finite, scale_problem, sha256
from workbench.errors import ConfigError, reason_of
from workbench.ternary.bitlinear import BitLinear
from workbench.ternary.manifest import FORMAT, NAME, LayerEntry, Manifest, read_json_object
from workbench.ternary.master import WEIGHTS, load_master
from workbench.ternary.packed import content_problems, load_packed, read_tensors
from workbench.ternary.policy import tied_groups, weight_modules
from workbench.ternary.threshold import ThresholdVersion


def check_packed(folder: Path) -> TernaryCheck:
    """A folder of ``save_packed``: the codes in its file, and whether all of it loads."""
    check = TernaryCheck(folder, "packed folder")
    try:
        manifest = Manifest.read(folder)
        check.threshold = manifest.threshold.id
        tensors = read_tensors(folder)
        check.digests[WEIGHTS] = sha256(folder / WEIGHTS)
        check.problems += content_problems(manifest, tensors)
        check.problems += filter(None, (not_finite(*each) for each in sorted(tensors.items())))
        if not check.problems:
            load_packed(folder)  # names what is missing, left over or of another shape
    except ConfigError as error:
        check.problems.append(error.got)
    if check.problems:
        return check
    for name, entry in manifest.layers.items():
        if name not in manifest.later_of_ties():
            check.matrices.append(_packed_matrix(name, entry, tensors))
    if not check.ternary:
        check.problems.append(f"{NAME} names no ternary layer")
    return check


def _packed_matrix(name: str, entry: LayerEntry, tensors: dict[str, Tensor]) -> Matrix:
    scale = tensors.get(f"{name}.scale")
    if entry.precision == "ternary":
        codes = unpack_portable(tensors[f"{name}.codes"], entry.in_features).char() - 1
        return Matrix.ternary(name, codes, tensors[f"{name}.scale"])
    shape = (entry.out_features, entry.in_features)
    if scale is None:
        return Matrix(name, entry.precision, shape)
    low, high = float(scale.min()), float(scale.max())
    return Matrix(name, entry.precision, shape, None, scale.numel(), low, high)


def check_master(folder: Path) -> TernaryCheck:
    """A folder of ``save_master``: its float32 weights, and the codes that they give when used."""
    check = TernaryCheck(
        folder, "master folder", stored="float32 master weights, made ternary when they are used"
    )
    try:
        value = read_json_object(folder / NAME)
        if value.get("format") != FORMAT:
            check.problems.append(f"{NAME} has format {value.get('format')!r}, not {FORMAT}")
            return check
        check.threshold = ThresholdVersion.from_json(value.get("threshold"), NAME).id
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                check.problems += filter(None, [not_finite(name, file.get_tensor(name))])
        check.digests[WEIGHTS] = sha256(folder / WEIGHTS)
        if check.problems:
            return check
        model = load_master(folder)
    except (OSError, SafetensorError) as error:
        check.problems.append(f"{WEIGHTS} cannot be read: {reason_of(error)}")
        return check
    except ConfigError as error:
        check.problems.append(error.got)
        return check
    tied = {name for group in tied_groups(model) for name in group[1:]}
    for name, module in weight_modules(model):
        if isinstance(module, BitLinear):
            codes, scale = module.ternarized()
            check.matrices.append(Matrix.ternary(name, codes, scale))
            check.problems += filter(None, [scale_problem(f"the scale of {name}", scale)])
        elif name not in tied and isinstance(module.weight, Tensor):
            N, K = module.weight.shape
            check.matrices.append(Matrix(name, "high_precision", (N, K)))
    if not check.ternary:
        check.problems.append(f"{NAME} names no ternary layer")
    return check
