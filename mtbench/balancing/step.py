"""One forward pass of a multitask model, and every derivative a balancing method may ask of it."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import accumulate as running_sums
from itertools import chain
from math import inf, isnan
from typing import Literal

import torch
from torch import Tensor

from mtbench.balancing.distributed import ALONE, Ranks, processes
from mtbench.balancing.engine import Engine, explain, grad, gramian, must_be_whole
from mtbench.balancing.graph import part
from mtbench.balancing.jacobian import accumulate, owned, vector, views, width
from mtbench.balancing.passes import DOUBT, Passes
from mtbench.balancing.told import (
    Residuals,
    Shared,
    features_of,
    parameters_of,
    residuals_of,
    scalars,
    scale_of,
)
from mtbench.errors import StepError

Space = Literal["shared", "features"]
Again = Callable[[], "Step | Sequence[Tensor | None]"]


class Step(Passes):
    r"""One forward pass; each derivative is computed on first use, once.

    With :math:`K` objectives and shared parameters :math:`\theta \in \mathbb{R}^d`, the chain rule
    splits where the objectives' ways through autograd's graph part: the heads are differentiated
    once per objective, the encoder at most :math:`K` times, and nothing twice. Where it does not
    split (a head reads a parameter of the encoder, or what another head's features come from),
    every objective goes back from its loss in one piece, at the same price.

    A batch without a label for an objective is said by None, or by a loss that is exactly 0 or NaN
    and whose gradient is 0, as that of torch's mean over nothing is. Its head's ``.grad`` stays
    None. Methods see the loss 0 there, and where a loss is NaN.

    Args:
        losses: K scalar losses on the graph, None for one without labels. They are never stacked: a
            stack would send each objective's backward through all heads.
        features: what the encoder hands to every head, for methods that look there. Then the shared
            parameters are those that the features depend on.
        shared: where gradients are compared; by default every `nn.Parameter` that several losses
            reach, or that lies under the features. What several losses reach beside a part that is
            chosen here gets the gradient of the sum with the weights found. Frozen ones are
            skipped. They may come with their names (``encoder.named_parameters()``), for methods
            that tell layers and blocks apart.
        latent: the latent representation z: a tensor, or its index among the features.
        again: repeats the forward pass on the same batch with the parameters as they are then, and
            returns its losses, for methods that look at other points (``needs_again``).
        validation: sends a batch of held-out training samples through the model, likewise, for
            methods that learn from it (``needs_validation``).
        residuals: K tensors r_k of any shape on the graph, for methods that look at the kernel of
            what is squared (``needs_residuals``): loss k is the mean of r_k's squares, up to a
            factor. None where loss k is. With ranks they are the whole batch's,
            ``ranks.gather(r_k)``.
        engine: how the Jacobian is computed and where it lies; one for all steps of a loop saves
            allocations, and only the last step's Jacobian is valid then.
        loss_scale: a `torch.amp.GradScaler`, or its scale S: hand over the losses as they are.
            Gradients are computed S times as large, so that float16 holds them, and so they reach
            ``.grad``; what methods see of them is divided by S.
        ranks: the processes that share the batch, `mtbench.balancing.distributed.Group()`. Features
            are of this rank's samples; losses have the value of the whole batch's, on the graph of
            this rank's samples. Then all that methods see is of the whole batch, but for what is
            per sample (`feature_grads`, `sensitivities`), and so is ``.grad``:
            :math:`J = \sum_r J^{(r)}`. ``ALONE`` says that of several processes each trains by
            itself.

    Raises:
        StepError: what is said contradicts itself; what contradicts the graph is found when a
            derivative is asked for.

    Example:
        >>> encoder, head_1, head_2 = (torch.nn.Linear(2, 2) for _ in range(3))
        >>> z = encoder(torch.ones(4, 2))
        >>> step = Step([head_1(z).square().mean(), head_2(z).abs().mean()])
        >>> step.jacobian().shape
        torch.Size([2, 6])
        >>> step.backward(torch.tensor([0.3, 0.7]))
        >>> encoder.weight.grad.shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        losses: Sequence[Tensor | None],
        *,
        features: Tensor | Sequence[Tensor] = (),
        shared: Shared | None = None,
        latent: int | Tensor = -1,
        again: Again | None = None,
        validation: Again | None = None,
        residuals: Residuals | None = None,
        engine: Engine | None = None,
        loss_scale: "float | torch.amp.GradScaler" = 1.0,
        ranks: Ranks | None = None,
    ) -> None:
        checked = scalars(losses)
        told = features_of(features)
        if isinstance(latent, bool) or not isinstance(latent, (int, Tensor)):
            kind = type(latent).__name__
            raise StepError(f"Step: latent must be a tensor or its index, found a {kind}")
        if ranks is not None and not isinstance(ranks, Ranks):
            raise StepError(
                f"Step: ranks must be Group() or ALONE of mtbench.balancing.distributed, found "
                f"{ranks!r}"
            )
        if engine is not None and not isinstance(engine, Engine):
            raise StepError(f"Step: engine must be an Engine(...), found {engine!r}")
        self.latent = latent if isinstance(latent, int) else 0
        if isinstance(latent, Tensor) and told:
            self.latent = next((i for i, f in enumerate(told) if f is latent), -1)
            if self.latent < 0:
                raise StepError("Step: latent must be one of the features, found another tensor")
        self._named = None if shared is None else parameters_of(shared)
        super().__init__(
            checked,
            told or ((latent,) if isinstance(latent, Tensor) else ()),
            bool(told),
            None if self._named is None else tuple(p for _, p in self._named),
            Engine(batched=False) if engine is None else engine,
            scale_of(loss_scale, checked[0].device),
            ranks or ALONE,
        )
        self._again, self._validation = again, validation
        self._residuals = None if residuals is None else residuals_of(residuals, checked)
        self.speaks_of_ranks = ranks is not None
        self.gramians: dict[Space, Tensor] = {}  # those computed so far

    @property
    def num_objectives(self) -> int:
        """K, the number of losses."""
        return len(self.losses)

    @property
    def shared(self) -> tuple[Tensor, ...]:
        """The parameters whose gradients are compared."""
        return self.roles.shared if self._chosen is None else self._chosen

    @property
    def named_shared(self) -> tuple[tuple[str, Tensor], ...]:
        """The same, with their names; empty ones where they were not said."""
        return self._named or tuple(("", p) for p in self.shared)

    @property
    def heads(self) -> tuple[tuple[Tensor, ...], ...]:
        """Per objective, the trainable parameters that are its own."""
        return self.roles.heads

    def refuse_chosen(self, walk: bool = True) -> None:
        """Refuse parameters at which there is nothing to compare.

        Args:
            walk: whether the graph is looked at, too.

        Raises:
            StepError: none is trained, or a single objective reaches them.
        """
        if self._chosen is None:
            return
        if not self._chosen:
            raise StepError(
                "Step: no trainable parameter is left in shared=: hand over the model's own, which "
                "require grad (a generator gives them once: a list, where it is kept), or leave "
                "shared= out"
            )
        if not walk:
            return
        chosen = {id(p) for p in self._chosen}
        apart = self.num_objectives > 1 and chosen.isdisjoint(map(id, self.parting.shared))
        if apart and all(loss.requires_grad for loss in self.losses):
            for k, head in enumerate(self.parting.heads):
                if chosen <= {id(p) for p in head}:
                    raise StepError(
                        f"Step: only losses[{k}] reaches the parameters in shared=: hand over what "
                        "several losses reach, or leave shared= out"
                    )

    @property
    def has_again(self) -> bool:
        """Whether it was said how to repeat the forward pass."""
        return self._again is not None

    def again(self) -> "Step":
        """Return a new step of the same batch at the parameters as they are now.

        This step's Jacobian may be overwritten by the other's.

        Raises:
            StepError: it was not said how.
        """
        if self._again is None:
            raise StepError(
                "Step.again: this method looks at losses at other parameters: give again=FUNCTION, "
                "which computes those of the same batch once more"
            )
        return self._beside(self._again())

    def _beside(self, found: "Step | Sequence[Tensor | None]") -> "Step":
        if not isinstance(found, Step):
            shared = None if self._chosen is None else self.named_shared
            found = self.like(found, shared=shared, ranks=self.ranks.later)
        if torch.is_grad_enabled():
            found.refuse_constants()
        return found

    def like(
        self,
        losses: Sequence[Tensor | None],
        *,
        shared: Shared | None,
        features: Tensor | Sequence[Tensor] = (),
        latent: int | Tensor = -1,
        residuals: Residuals | None = None,
        ranks: Ranks | None = None,
    ) -> "Step":
        """Return a step of other losses in the same loop; its arguments are those of `Step`."""
        return Step(
            losses,
            features=features,
            shared=shared,
            latent=latent,
            again=self._again,
            validation=self._validation,
            residuals=residuals,
            engine=self.engine,
            loss_scale=self.loss_scale,
            ranks=self.ranks if ranks is None else ranks,
        )

    def at(self, shared: Shared) -> "Step":
        """Return the same forward pass, where gradients are compared at other parameters."""
        beside = self.like(
            self.losses,
            features=self.features if self._at_features else (),
            shared=shared,
            latent=self.latent if self._at_features or not self.features else self.features[0],
            residuals=self._residuals,
        )
        beside.transient, beside._trained = self.transient, {id(p) for p in self.shared}
        return beside

    def validation(self) -> "Step":
        """Return a step of a batch of held-out training samples, at the parameters as they are now.

        Another call is another batch. This step's Jacobian may be overwritten by the other's.

        Raises:
            StepError: it was not said how.
        """
        if self._validation is None:
            raise StepError(
                "Step.validation: this method learns from held-out training samples: give "
                "validation=FUNCTION, which computes the losses of a new batch of them"
            )
        return self._beside(self._validation())

    @property
    def has_residuals(self) -> bool:
        """Whether it was said what the losses square."""
        return self._residuals is not None

    @property
    def residuals(self) -> tuple[Tensor | None, ...]:
        """Per objective what its loss squares, on the graph.

        Raises:
            StepError: it was not said.
        """
        if self._residuals is None:
            raise StepError("Step.residuals: this method needs Step(residuals=...), found none")
        return self._residuals

    def refuse_residuals(self) -> None:
        """Refuse residuals of whose squares the losses are no means, by the gradients of both.

        Costs two backward passes for each objective.

        Raises:
            StepError: gradients differ by more than rounding makes of them.
        """
        for k, (loss, residual) in enumerate(zip(self.losses, self.residuals, strict=True)):
            if residual is None or not loss.isfinite():
                continue
            value = residual.detach().float()
            squares = value.square().sum()
            least, most = self.ranks.extremes(squares)
            if most > least:  # NaN is told below
                raise StepError(
                    f"Step: residuals[{k}] must be the whole batch's, found others in each process:"
                    f" hand over ranks.gather(residuals[{k}])"
                )
            factor = torch.where(squares > 0, 2 * loss.detach() / squares, 0)
            own = self.reached_by(k)
            wanted, found = (
                vector(self.gradient(objective, own), own).double()
                for objective in (loss, factor * (value * residual).sum())
            )
            if wanted.isfinite().all() and not (found - wanted).norm() <= DOUBT * wanted.norm():
                raise StepError(
                    f"Step: losses[{k}] must be the mean of the squares of residuals[{k}], up to a "
                    "factor, and has another gradient: hand over what is squared, of this batch "
                    "and on its graph, 0 where there is no label"
                )

    def reached_by(self, k: int) -> tuple[Tensor, ...]:
        """Return the parameters of an objective: what it may share with others, and its head."""
        return (*self.shared, *self.roles.rest, *self.heads[k])

    @property
    def z(self) -> Tensor:
        """The latent representation, (B, ...)."""
        self._need_features("z")
        return self.features[self.latent]

    @cached_property
    def observed(self) -> Tensor:
        """The K loss values as they are, detached, (K,), float32 or what holds them if larger."""
        found = self._stacked.detach()
        if found.dtype == torch.float32:
            return found
        return found.to(torch.promote_types(found.dtype, torch.float32))

    @cached_property
    def values(self) -> Tensor:
        """The K loss values as methods see them, 0 where there is no label, a copy, (K,)."""
        return self.observed.nan_to_num(nan=0.0, posinf=inf, neginf=-inf)

    @cached_property
    def _stacked(self) -> Tensor:
        with torch.enable_grad():  # kept for `total`, whoever asks first
            return torch.stack([x if x.dim() == 0 else x.reshape(()) for x in self.losses])

    @property
    def ones(self) -> Tensor:
        """Weights of 1, (K,), of the dtype of `observed` where losses are of one."""
        first = self.losses[0]
        return first.new_ones(
            len(self.losses), dtype=torch.promote_types(first.dtype, torch.float32)
        )

    def total(self, weights: Sequence[float] | Tensor | None = None) -> Tensor:
        """Return sum_k w_k L_k on the graph; the plain sum by default."""
        if isinstance(weights, Tensor):
            # A weight's gradient is a loss, which may be NaN. Reading it could make the host wait.
            if weights.requires_grad and ("read" not in vars(self) or any(map(isnan, self.read))):
                weights = torch.where(self.observed.isnan(), weights.detach(), weights)
            return (self._stacked * weights).sum()
        terms: Sequence[Tensor] = self.losses
        if weights is not None:
            terms = [weight * loss for weight, loss in zip(weights, self.losses, strict=True)]
        return sum(terms[1:], start=terms[0])

    @cached_property
    def offsets(self) -> list[int]:
        """Where each shared parameter begins in the flat vector; the last entry is d."""
        return list(running_sums((width(p) for p in self.shared), initial=0))

    def feature_grads(self) -> tuple[tuple[Tensor, ...], ...]:
        """Return per objective dL_k/dfeatures, detached, a tuple with the features' shapes.

        They are those of this rank's samples. Costs one backward of each head. A feature that an
        objective does not use gets zeros.
        """
        self._need_features("feature_grads")
        return tuple(tuple(map(self.unscaled, row)) for row in self._feature_grads)

    def unscaled(self, value: Tensor) -> Tensor:
        """Return a gradient without the loss scale; half precision would not hold it."""
        if self.loss_scale == 1:
            return value
        return value.to(torch.promote_types(value.dtype, torch.float32)) / self.loss_scale

    @cached_property
    def sensitivities(self) -> tuple[Tensor, ...]:
        """Per objective dL_k/dz of this rank's samples, differentiable (``create_graph=True``).

        Costs one backward of each head, and another where the result is differentiated.
        """
        self._need_features("sensitivities")
        found = [
            grad([loss], [self.z], [seed], create_graph=True)[0]
            for loss, seed in zip(self.losses, self._seeds, strict=True)
        ]
        if unread := [k for k, value in enumerate(found) if value is None]:
            self.refuse_unread(unread)
        if processes():  # nobody shards else; the heads' backward is to be differentiated
            must_be_whole(chain(*self.parting.heads))
        return tuple(
            torch.zeros_like(self.z) if value is None else self.unscaled(value) for value in found
        )

    def jacobian(self) -> Tensor:
        """Return the (K, d) matrix of dL_k/dshared.

        Costs the heads' backward once and K encoder backwards.
        """
        _ = self._sent
        blocks = self.whole.blocks
        return self.unscaled(blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1))

    @cached_property
    def _sent(self) -> tuple[Tensor, torch.cuda.Event | None]:
        """The losses on their way to the host: whoever reads them waits for the forward pass only.

        What is asked of the device afterwards goes on meanwhile.
        """
        sent = self.observed.to("cpu", non_blocking=True)
        event = torch.cuda.Event() if self.observed.is_cuda else None  # type: ignore[no-untyped-call]
        if event is not None:
            event.record()
        return sent, event

    @cached_property
    def read(self) -> list[float]:
        """`observed`, as numbers; NaN says that there is no label."""
        sent, event = self._sent
        if event is not None:
            event.synchronize()
        found: list[float] = sent.tolist()
        return found

    @cached_property
    def host_values(self) -> Tensor:
        """`values`, float64, on the CPU."""
        found = [0.0 if isnan(value) else value for value in self.read]
        return torch.tensor(found, dtype=torch.float64, device="cpu")

    def gramian(self, space: Space = "shared") -> Tensor:
        """Return G = J J^T, (K, K), float64, on the CPU, of the gradients in a space.

        Args:
            space: ``"shared"`` parameters, or ``"features"`` (no encoder backward is paid).
        """
        _ = self._sent
        if space not in self.gramians:
            if space == "features":
                blocks = [
                    torch.stack([value.flatten() for value in grads])
                    for grads in zip(*self._feature_grads, strict=True)
                ]
                local = gramian(blocks)
                found = self.ranks.total(local)  # every column belongs to one rank's sample
            elif self.engine.parts == 1:
                found = self.held.gramian()
            else:
                parts = [  # each is gone before the next one is there
                    self.pull_back(group).gramian() for group in self.engine.groups(self.items)
                ]
                found = torch.stack(parts).sum(0)
            self.gramians[space] = found / self.loss_scale**2
        return self.gramians[space]

    def assign(self, direction: Tensor, head_weights: Tensor | None = None) -> None:
        """Write a (d,) direction into the shared parameters' ``.grad``, and the heads' gradients.

        The ``.grad``s are views of the direction. Existing ones are added to (gradient
        accumulation). Head k gets the gradient of its own loss, times ``head_weights[k]`` if given.

        Raises:
            StepError: the shared parameters are a part of what several losses reach: a direction
                says nothing about the rest.
        """
        if self.roles.rest:
            raise StepError(
                f"Step: {len(self.roles.rest)} parameters that several losses reach are beside the "
                f"{len(self.shared)} that are compared (by shared=, or by a wrapper), and this "
                "method finds a direction, no weights for the others: leave shared= or the wrapper "
                "out, or take a method that finds weights"
            )
        scaled = direction if self.loss_scale == 1 else direction * self.loss_scale
        for parameter, value in views(scaled, self.shared):
            if self.reaches(parameter):
                self._write(parameter, value)
        self._assign_heads(head_weights)

    def backward(
        self, weights: Tensor, space: Space = "shared", head_weights: Tensor | None = None
    ) -> None:
        """Write the gradient of sum_k w_k L_k into the ``.grad`` of what several losses reach.

        Args:
            weights: (K,), constants.
            space: where the weights were found: with ``"shared"`` the gradients are at hand and one
                product suffices; with ``"features"``, or an engine that has dropped them, one
                encoder backward is paid.
            head_weights: as in `assign`.
        """
        _ = self._sent
        shared, rest, _, _ = self.roles
        written: Iterable[tuple[Tensor, Tensor | None]] = ()
        if space == "shared" and self.engine.parts == 1:
            written = self.held.mixed(weights)
        else:
            rest = (*shared, *rest)
        for parameter, value in (
            *written,
            *zip(rest, self.mixed(weights, rest), strict=True),
        ):
            if value is not None and self.reaches(parameter):
                self._write(parameter, value)
        self._assign_heads(head_weights)

    def descend(self, objective: Tensor) -> None:
        """Write the gradient of a scalar on the graph into every ``.grad`` that it reaches.

        A balancer's own parameters, which all ranks compute alike, are not summed over ranks.
        """
        if not objective.requires_grad:  # a batch may hold no label at all
            return
        _ = self._sent
        absent = self._perhaps_absent  # whose heads the graph tells, which is freed on the way
        silent = [self.parting.heads[k] for k in absent]
        if absent and not self.parting.apart:  # in one tensor, a head without labels is nobody's
            silent += [(p,) for p in chain(*part([self.total()]).heads) if not self.reaches(p)]
        if self.ranks.size == 1:
            seed = None if self.loss_scale == 1 else torch.full_like(objective, self.loss_scale)
            try:
                objective.backward(seed)  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                explain(error)
                raise
        else:
            everything = list(chain(*part([objective]).heads))
            seed = torch.full_like(objective, self.loss_scale)
            found = owned(grad([objective], everything, [seed]), everything)
            ours = [p if self.reaches(p) else None for p in everything]
            sums = self.ranks.sums(
                [None if p is None else g for p, g in zip(ours, found, strict=True)]
            )
            for parameter, mine, value in zip(everything, found, sums, strict=True):
                if mine is not None:
                    self._write(parameter, mine if value is None else value)
        # A zero would let an optimizer's momentum move the head of an objective without labels.
        for head in silent:  # the first stands for all that are absent
            if self.says_no_label(absent[0], [parameter.grad for parameter in head]):
                for parameter in head:
                    parameter.grad = None

    def gradient(
        self, objective: Tensor | int, parameters: Sequence[Tensor] | None = None
    ) -> list[Tensor | None]:
        """Return the gradient of a scalar on the graph, or of the loss of that number, unscaled.

        Args:
            objective: which one.
            parameters: where; the shared ones by default.
        """
        points = self.shared if parameters is None else parameters
        if isinstance(objective, int):
            found = self.row(objective, points)
        else:
            seed = torch.full_like(objective, self.loss_scale)
            found = grad([objective], points, [seed], free=self._frees)
        sums = self.ranks.sums(found)
        return [None if value is None else self.unscaled(value) for value in sums]

    def _assign_heads(self, head_weights: Tensor | None) -> None:
        sums = iter(self.ranks.sums(list(chain(*self.head_grads))))
        for k, head in enumerate(self.heads):
            own = [(p, value) for p in head if (value := next(sums)) is not None]
            if not self.says_no_label(k, [value for _, value in own]):
                for parameter, value in own:  # which may be another one's memory
                    weighted = value.clone() if head_weights is None else value * head_weights[k]
                    self._write(parameter, weighted)

    def says_no_label(self, k: int, grads: Sequence[Tensor | None]) -> bool:
        """Return whether a loss is 0 or NaN, and its gradients 0."""
        if k not in self._perhaps_absent:
            return False
        found = [g.any().to(self.losses[k].device) for g in grads if g is not None]
        return not (found and torch.stack(found).any())

    @cached_property
    def _perhaps_absent(self) -> list[int]:
        """The objectives whose loss is 0, or NaN as it is without labels and where it diverged."""
        return [k for k, value in enumerate(self.read) if value == 0 or isnan(value)]

    def _write(self, parameter: Tensor, value: Tensor) -> None:
        accumulate(parameter, value)
        if parameter._post_accumulate_grad_hooks:
            self.engine.hooked[id(parameter)] = parameter

    def _need_features(self, what: str) -> None:
        if not self.features:
            raise StepError(f"Step.{what}: give latent=z or features=..., found no features")
