"""Distillation: the ternary arm also learns from a full-precision teacher, batch by batch.

    objective = (1 - alpha) * loss + alpha * T^2 * KL(teacher || student) + weight * relations

The first divergence is that of the next-token distributions at temperature T (Hinton et al.,
arXiv 1503.02531); T^2 keeps its gradients as large as those of the loss. ``relations`` is that of
the attention relations of one layer (MiniLMv2, 2012.15828; BitDistill uses it for ternary
students): for each of Q, K and V and each of its heads, softmax(A A^T / sqrt(d)) says how alike
the positions are, and the student shall find them alike as the teacher does. A model whose
projections are fused into one layer has no such states and is refused.

Cost: a forward pass of the teacher over every training batch, and for the relations T x T
numbers a head. Nothing of it is state: the teacher is frozen and draws no random numbers, so a
training resumes bit for bit with the same teacher.

Shapes: B sequences, T tokens, V vocabulary, H heads, D width of a head.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel

from workbench.errors import ConfigError
from workbench.pilot.sections.train import Distillation
from workbench.train.setup import TrainingSetup
from workbench.wording.counts import number_of

LOGITS_AT_ONCE = 1 << 22
"""Of the float32 numbers of a piece of the logits that are compared together; 16 MiB."""
KINDS = ("q_proj", "k_proj", "v_proj")


def as_teacher(model: PreTrainedModel, setup: TrainingSetup) -> PreTrainedModel:
    """``model`` where the student is trained, in the precision that the computation rounds to."""
    if setup.device == "cuda" and setup.train.precision == "bfloat16":
        model = model.bfloat16()
    return model.to(setup.device)


class Teacher:
    """A frozen model and what a student is compared with it by.

    tokens, seconds: of its forward passes, since the last :meth:`reset`; seconds is None on a
    GPU, where passes of both models overlap and only the step as a whole has a duration.
    kl, relations: sums over the batches since then (nats a token), on the model's device.
    """

    def __init__(self, model: PreTrainedModel, section: Distillation) -> None:
        self.model = model.eval().requires_grad_(False)
        self.model.config.use_cache = False  # nothing is generated: no keys and values are kept
        self.section = section
        self.uses_relations = section.attention_weight > 0
        if self.uses_relations:
            attention_projections(model, section.attention_layer)
        self.reset()

    def reset(self) -> None:
        self.tokens, self.batches = 0, 0
        self.seconds: float | None = 0.0
        self.kl: Tensor | float = 0.0
        self.relations: Tensor | float = 0.0

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[dict[str, Tensor]]:
        """Within, the outputs of ``model``'s projections go into the mapping, by their kind."""
        states: dict[str, Tensor] = {}
        hooks = []
        if self.uses_relations:
            for kind, layer in attention_projections(model, self.section.attention_layer).items():
                hooks.append(
                    layer.register_forward_hook(
                        lambda _, __, output, kind=kind: states.__setitem__(kind, output)
                    )
                )
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()

    def extra_loss(
        self,
        ids_BT: Tensor,
        logits_BTV: Tensor,
        states: dict[str, Tensor],
        judged_BT: Tensor | None = None,
        share: Tensor | float = 1.0,
    ) -> Tensor:
        """What is added to (1 - alpha) times the student's loss on the batch ``ids_BT``.

        logits_BTV, states: of the student, on the same batch. judged_BT: bool, the tokens that are
        judged; their predictions alone are compared. None for all. share: what the batch's mean
        over them counts for, where batches have more and fewer of them.
        """
        section, began = self.section, time.perf_counter()
        with torch.no_grad(), self.watching(self.model) as shown:
            teacher_BTV = self.model(input_ids=ids_BT).logits
        if ids_BT.is_cuda:
            self.seconds = None
        elif self.seconds is not None:
            self.seconds += time.perf_counter() - began
        self.tokens += ids_BT.numel()
        self.batches += 1
        own, taught = logits_BTV[:, :-1], teacher_BTV[:, :-1]
        if judged_BT is not None:
            own, taught = (each[judged_BT[:, 1:]].unsqueeze(0) for each in (own, taught))
        kl = share * logits_divergence(own, taught, section.temperature)
        self.kl = self.kl + kl.detach()
        extra = section.alpha * section.temperature**2 * kl
        if self.uses_relations:
            relations = self._relations(states, shown)
            self.relations = self.relations + relations.detach()
            extra = extra + section.attention_weight * relations
        return extra

    def _relations(self, students: dict[str, Tensor], teachers: dict[str, Tensor]) -> Tensor:
        config = self.model.config
        grouped = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        losses = []
        for kind in KINDS:
            heads = config.num_attention_heads if kind == "q_proj" else grouped
            losses.append(relation_divergence(students[kind], teachers[kind], heads))
        return torch.stack(losses).mean()


def logits_divergence(student_BTV: Tensor, teacher_BTV: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of the next-token distributions, mean over the positions, nats.

    Only the student has a gradient. Beside the logits one tensor of their size is held, and they
    are read once: the float32 distributions of a step's every position would be several.
    """
    return _Divergence.apply(student_BTV, teacher_BTV, temperature)


class _Divergence(torch.autograd.Function):
    """The gradient at logits / T is softmax(student) - softmax(teacher): made on the way forward,
    a piece at a time, while both distributions are there."""

    @staticmethod
    def forward(ctx, student_BTV: Tensor, teacher_BTV: Tensor, temperature: float) -> Tensor:
        positions = max(1, math.prod(student_BTV.shape[:2]))
        piece = max(1, LOGITS_AT_ONCE // student_BTV.shape[2])
        divergence = torch.zeros((), device=student_BTV.device)
        gradient_BTV = torch.empty_like(student_BTV, memory_format=torch.contiguous_format)
        for sequence in range(len(student_BTV)):
            for begin in range(0, student_BTV.shape[1], piece):
                of = sequence, slice(begin, begin + piece)
                student_nV, teacher_nV = (
                    F.log_softmax(logits[of].float() / temperature, dim=-1)
                    for logits in (student_BTV, teacher_BTV)
                )
                likely_nV = teacher_nV.exp()
                divergence += torch.dot(likely_nV.flatten(), (teacher_nV - student_nV).flatten())
                gradient_BTV[of] = student_nV.exp_().sub_(likely_nV).div_(positions * temperature)
        ctx.save_for_backward(gradient_BTV)
        return divergence / positions

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (gradient_BTV,) = ctx.saved_tensors
        return gradient * gradient_BTV, None, None


def relation_divergence(student: Tensor, teacher: Tensor, heads: int) -> Tensor:
    """KL of the relations of ``[B, T, H * D]`` states, mean over heads and positions, nats.

    The widths of a head may differ between the two: what is compared is ``[B, H, T, T]``.
    """
    student, teacher = (_log_relations(states, heads) for states in (student, teacher))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _log_relations(states: Tensor, heads: int) -> Tensor:
    """log softmax(A A^T / sqrt(D)) as rows ``[B * H * T, T]``, in float32 under autocast too:
    eight bits of a product of 100 are half a nat."""
    A_BHTD = states.float().unflatten(-1, (heads, -1)).transpose(1, 2)
    with torch.autocast(states.device.type, enabled=False):
        products = A_BHTD @ A_BHTD.transpose(-2, -1) / math.sqrt(A_BHTD.shape[-1])
    return F.log_softmax(products, dim=-1).flatten(0, 2)


def attention_projections(model: nn.Module, layer: int) -> dict[str, nn.Module]:
    """The modules q_proj, k_proj, v_proj of decoder layer ``layer`` (negative: from the end).

    Raises ConfigError for a layer that is not there, and for a model without such modules.
    """
    layers: dict[int, dict[str, nn.Module]] = {}
    for name, module in model.named_modules():
        kind = name.rpartition(".")[2]
        if kind in KINDS and (number := re.search(r"\.(\d+)\.", name)):
            layers.setdefault(int(number[1]), {})[kind] = module
    found = [layers[number] for number in sorted(layers) if len(layers[number]) == len(KINDS)]
    if not found:
        raise ConfigError(
            f"train.distillation.attention_weight: {type(model).__name__} has no layers with "
            f"{', '.join(KINDS)}",
            allowed="attention relations of models whose projections are layers of their own",
            next_step="set train.distillation.attention_weight to 0: the logits alone distil too",
        )
    if not -len(found) <= layer < len(found):
        raise ConfigError(
            f"train.distillation.attention_layer: got {layer}, the model has "
            f"{number_of(len(found), 'layer')}",
            allowed=f"0 to {len(found) - 1}, or -1 to -{len(found)} from the end",
        )
    return found[layer]
