"""A network of your own on an image encoder: `afterimage.stages`, with an encoder.

Its parameters are `encoder/…` and others of any name. The encoder is read, moved into
the network, frozen or slowed down by its group, saved with every checkpoint and kept
beside the artefact. Segmentation, detection and captions are made of it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from afterimage.checkpoints.trees import transfer
from afterimage.checkpoints.weights import ENCODER, write_encoder
from afterimage.data import Preprocessing
from afterimage.encoder import encoder_manifest
from afterimage.errors import UserError
from afterimage.finetune.own_options import EncoderOptions
from afterimage.finetune.source import SourceModel
from afterimage.models import ModelConfig, abstract_encoder
from afterimage.runs import Run
from afterimage.stages import OwnStage
from afterimage.training.job import Say
from afterimage.training.loop import StopSignal
from afterimage.training.optimiser import Group
from afterimage.training.stage import Phase, Term
from afterimage.training.step import State


def read_encoder(config: EncoderOptions) -> tuple[SourceModel, ModelConfig]:
    """(the encoder to start from, the architecture without its bottleneck).

    Raises UserError where there is none, or for mode scratch of one that never learns;
    CheckpointError where it is damaged.
    """
    source = SourceModel.read(config.from_)
    if config.mode == "scratch" and source.model.norm == "frozen":
        raise UserError(
            f"mode=scratch: the encoder in {config.from_} has norm 'frozen', which "
            "never learns; give the same encoder imported with --norm batch"
        )
    model = dataclasses.replace(source.model, bottleneck=None, remat=config.remat)
    return source, model


class EncoderStage(OwnStage):
    """A stage that trains a network of one's own on an image encoder.

    Set `params` and `stats`, with the encoder's as shapes unless the mode is scratch,
    and `sets`; then call `ready(self.phase(...))`.
    """

    def __init__(
        self,
        config: EncoderOptions,
        run: Run,
        source: SourceModel,
        model: ModelConfig,
        preprocessing: Preprocessing,
        name: str,
        fingerprint: str,
    ):
        """`name` and `fingerprint` are those of all data that the run depends on."""
        super().__init__(config, run, name, fingerprint)
        self.source, self.model, self.preprocessing = source, model, preprocessing

    def phase(self, terms: Mapping[str, tuple[Any, Any, float]], *own: Group) -> Phase:
        """The only phase: the groups `own`, and the encoder as the mode says.

        `terms` maps names to (loss, what it reads, weight): the loss is a function of
        the values read, in this order. Terms of weight 0 are left out.
        """
        config = self.config
        encoder = Group(ENCODER, f"^{ENCODER}/", freeze=config.mode == "frozen")
        if config.mode == "full":
            encoder = dataclasses.replace(encoder, lr=config.encoder_lr)
        return Phase(
            name=config.mode,
            terms=tuple(
                Term(
                    name=name,
                    fn=lambda view, loss=loss, reads=reads: _pair(
                        loss(*(view[read] for read in reads))
                    ),
                    reads=reads,
                    weight=weight,
                )
                for name, (loss, reads, weight) in terms.items()
                if weight
            ),
            groups=(*own, encoder),
            steps=config.total_steps(len(self.train)),
            options=config,
        )

    def started(self) -> tuple[Any, Any]:
        """(params, stats) before the first step, with the encoder's weights."""
        params, stats = self.params, self.stats
        if self.config.mode == "scratch":
            return params, stats
        given = {k: v for k, v in self.source.params.items() if k != "bottleneck"}
        own, _ = transfer(given, params[ENCODER])
        old, _ = transfer(self.source.stats, stats.get(ENCODER, {}))
        more = {ENCODER: old} if ENCODER in stats else {}
        return {**params, ENCODER: own}, {**stats, **more}

    def begin(self, say: Say, stop: StopSignal) -> State:
        return self.fresh(*self.started())

    def trained(self, step: int) -> dict[str, Any]:
        return {**super().trained(step), "from": self.source.describe()}

    def manifest(self, step: int) -> dict[str, Any]:
        """The manifest of the encoder of a step."""
        info, data = abstract_encoder(self.model).feature_info, self.identity
        trained = self.trained(step)
        return encoder_manifest(self.model, info, self.preprocessing, data, trained)

    def encoder(self, state: State) -> tuple[Any, Any, dict[str, Any]]:
        params, stats = self.weights(state)
        manifest = self.manifest(int(state["step"]))
        return params[ENCODER], stats.get(ENCODER, {}), manifest

    def places(self) -> tuple[str, str]:
        return self.artefact, ENCODER

    def write(self, params: Any, stats: Any, step: int) -> None:
        manifest, folder = self.manifest(step), self.run.path
        whole = {**manifest, **self.content()}
        place, kind = folder / self.artefact, self.artefact
        write_encoder(place, params, stats, whole, kind=kind)
        alone = params[ENCODER], stats.get(ENCODER, {})
        write_encoder(folder / ENCODER, *alone, manifest)


def _pair(found: Any) -> Any:
    """(loss, metrics) of a loss that may have no metrics."""
    return found if isinstance(found, tuple) else (found, {})
