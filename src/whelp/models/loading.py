"""A model folder, cut into parts; and the parts back into a model folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from whelp.errors import ModelError
from whelp.maths.posterior import HeadPosterior
from whelp.models.anatomy import Pretrained, anatomy_of, num_layers
from whelp.models.check import check_cut, check_flat
from whelp.models.export import POSTERIOR, save_posterior, write_folder
from whelp.models.heads import ScalarHead
from whelp.models.layout import may_read_flat
from whelp.models.trunk import Branch, Cut, LMHead, cut

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from whelp.engines.devices import Compute

SCORE = "score.weight"
StateOf = Callable[[nn.Module], Mapping[str, Tensor]]
"""The weights of a module by their names."""


@dataclass(frozen=True, slots=True)
class Source:
    """One loaded folder: the model, its parts, and what is needed to write one like it."""

    path: Path
    model: Pretrained
    cut: Cut
    scalar_head: ScalarHead
    has_scalar_head: bool
    notes: tuple[str, ...] = ()

    @property
    def config(self) -> PretrainedConfig:
        return self.model.config

    def has_member(self, index: int) -> bool:
        return (self.path / f"member-{index}").is_dir()

    def member(self, index: int, template: Any) -> Any:
        """Ensemble member `index`: `template` (branch and head) with the weights of the folder's `member-<index>`, or with
        its own where the folder holds no such member."""
        folder = self.path / f"member-{index}"
        if self.has_member(index):
            from safetensors.torch import load_file

            state = load_file(folder / "model.safetensors")
            score = state.pop(SCORE)
            # Layers that the file leaves out were frozen when it was written: they are those of the template.
            template.branch.load_state_dict(self._local_names(state, folder), strict=False)
            template.head.linear.weight.data.copy_(score)
            template.head.posterior = _posterior(folder, template.head)
        return template

    def export(
        self,
        path: Path,
        head: str,
        members: Sequence[tuple[Branch, LMHead | ScalarHead]],
        gain: float,
        extra: Mapping[str, Any],
        state_of: StateOf = nn.Module.state_dict,
        writes: bool = True,
    ) -> None:
        """Write a Hugging Face folder with the weights of `members`; further members go to `member-<i>` beside. Of several
        processes that read their weights together (`state_of`) one `writes`."""
        config = copy.deepcopy(self.config)
        state = {name: tensor for name, tensor in state_of(self.model).items() if name != SCORE}
        branch, first_head = members[0]
        state |= self._global_names(state_of(branch))
        if isinstance(first_head, ScalarHead):
            state = {name: tensor for name, tensor in state.items() if not name.startswith("lm_head.")}
            state[SCORE] = first_head.linear.weight.detach() * gain
            config.num_labels = 1
        elif not config.tie_word_embeddings:
            state |= {
                name: tensor for name, tensor in state_of(first_head.model).items() if name.startswith("lm_head.")
            }
        if head == "lm" and config.tie_word_embeddings:
            state = {name: tensor for name, tensor in state.items() if not name.startswith("lm_head.")}
        for key, value in extra.items():
            setattr(config, key, value)
        heads = [scalar for _, scalar in members if isinstance(scalar, ScalarHead)]
        others = [
            self._global_names(state_of(branch)) | {SCORE: scalar.linear.weight.detach() * gain}
            for (branch, _), scalar in zip(members[1:], heads[1:], strict=False)
        ]
        if not writes:
            return
        write_folder(path, state, config, head, tokenizer_from=self.path, members=others)
        for i, scalar in enumerate(heads):
            if scalar.posterior is not None:
                save_posterior(scalar.posterior, gain, path / f"member-{i}" if i else path)

    def _global_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of branch weights, as the whole model has them."""
        plan = anatomy_of(self.model)
        k = num_layers(self.model) - len(getattr(self.cut.branch.decoder, plan.layers))
        result = {}
        for name, tensor in state.items():
            name = name.removeprefix("decoder.")
            if name.startswith(f"{plan.layers}."):
                _, index, rest = name.split(".", 2)
                name = f"{plan.layers}.{int(index) + k}.{rest}"
            result[f"{plan.decoder}.{name}"] = tensor.detach()
        return result

    def _local_names(self, state: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
        table = {whole: name for name, whole in zip(self.cut.branch.state_dict(), self._names(), strict=True)}
        below = [name for name in state if name not in table]
        if below:
            raise ModelError(
                f"{folder} was trained in {below[0]} and others that lie below trainable_layers here, so it cannot share this "
                "trunk: give trainable_layers at least the value that it was trained with."
            )
        return {table[name]: tensor for name, tensor in state.items()}

    def _names(self) -> list[str]:
        return list(self._global_names(self.cut.branch.state_dict()))


def load_source(path: Path, head: str, compute: Compute, trainable_layers: int | str) -> Source:
    """Load and cut the model in `path`, and check the cut. A family that cannot be cut runs whole, with a note.

    Raises `ModelError` when the folder holds no model that `transformers` can load from safetensors.
    """
    model, has_scalar_head = _load(path, head, compute)
    with_head = head == "lm"
    notes: tuple[str, ...] = ()
    if may_read_flat(model) and (problem := check_flat(model)):
        notes = (f"{path.name}: {problem}; its batches are padded, which is slower",)
    parts = cut(model, trainable_layers, with_head=with_head)
    problem = check_cut(model, parts)
    if problem and parts.trunk.decoder is not None:
        notes += (f"{path.name}: {problem}; it runs whole (trainable_layers: all), which is slower",)
        parts = cut(model, "all", with_head=with_head)
        problem = check_cut(model, parts)
    if problem:
        raise ModelError(f"{path}: {problem}; this model family is not supported.")
    scalar_head = ScalarHead(parts.trunk.hidden_size).to(compute.device)
    if has_scalar_head:
        scalar_head.linear.weight.data.copy_(_score(path, model))
        scalar_head.posterior = _posterior(path, scalar_head)
    return Source(path, model, parts, scalar_head, has_scalar_head, notes)


def _score(path: Path, model: Pretrained) -> Tensor:
    """The score's own weights: those in `model` were rounded to the number format that it computes in."""
    from safetensors import safe_open

    file = path / "model.safetensors"
    if file.is_file():
        with safe_open(file, "pt") as weights:
            return weights.get_tensor(SCORE)
    return model.score.weight.data  # a folder of several files


def _posterior(folder: Path, head: ScalarHead) -> HeadPosterior | None:
    """What the head of a folder is sure of; None where it does not say. Raises `ModelError` where it is of another head."""
    from safetensors.torch import load_file

    file = folder / POSTERIOR
    if not file.is_file():
        return None
    found, width = load_file(file), head.linear.in_features
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if shapes != {"mean": (width,), "root": (width, width)}:
        raise ModelError(
            f"{file} holds {shapes}; expected mean and root of a head that reads {width} numbers. Delete it (the model "
            "is then sure of everything), or train the reward model again."
        )
    return HeadPosterior(**found)


def _load(path: Path, head: str, compute: Compute) -> tuple[Pretrained, bool]:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(path)
        architecture = (config.architectures or [""])[0]
        is_classifier = architecture.endswith("ForSequenceClassification")
        if is_classifier and head == "lm":
            raise ModelError(f"{path} is a reward model ({architecture}), but a language model is needed here.")
        kind: Any = AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM
        model, report = kind.from_pretrained(path, dtype=compute.dtype, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ModelError(
            f"cannot load a model from {path}: {reason} (weights are read from safetensors only)."
        ) from error
    if report["missing_keys"]:  # transformers would go on with random weights
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelError(
            f"{path} lacks {len(report['missing_keys'])} of the weights that its config.json asks for ({missing}, ...): the "
            "folder is incomplete or holds another model."
        )
    if is_classifier and getattr(model.config, "num_labels", 1) != 1:
        raise ModelError(f"{path} is a classifier of {model.config.num_labels} labels; a reward model has one.")
    return model.to(compute.device).eval(), is_classifier


def load_whole(path: Path, compute: Compute) -> tuple[Pretrained, bool]:
    """The model of a folder uncut, and whether it scores. Raises `ModelError` as `load_source` does."""
    return _load(path, "scalar", compute)


def load_classifier(path: Path, compute: Compute) -> tuple[Pretrained, PreTrainedTokenizerBase]:
    """A sequence classifier of one label and its tokenizer, as they lie there. Raises `ModelError` as `load_source` does."""
    model, _ = _load(path, "scalar", compute)
    tokenizer = _tokenizer(path)
    if tokenizer.pad_token_id is not None:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _tokenizer(path: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ModelError(f"cannot load a tokenizer from {path}: {reason}") from error


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with a chat template and with a pad token that ends no turn."""
    from whelp.text.chat import ensure_template, pad_id

    tokenizer = _tokenizer(path)
    ensure_template(tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id(tokenizer))
    return tokenizer


def context_of(path: Path) -> int | None:
    """The longest sequence in tokens that the model of a folder can read; None where its config does not say."""
    from transformers import AutoConfig

    return getattr(AutoConfig.from_pretrained(path).get_text_config(), "max_position_embeddings", None)


def refuse_language_model(path: Path) -> None:
    """Raises `ModelError` where the model in `path` does not score: it would be given a head of random numbers."""
    from transformers import AutoConfig

    architecture = (AutoConfig.from_pretrained(path).architectures or ["no architecture"])[0]
    if not architecture.endswith("ForSequenceClassification"):
        raise ModelError(
            f"{path} is a language model ({architecture}), but a reward model is needed here: a sequence classifier of "
            "one label, such as whelp reward writes."
        )


def has_vocabulary(tokenizer: PreTrainedTokenizerBase, path: Path) -> bool:
    """True where the model in `path` gives every token the same id."""
    return load_tokenizer(path).get_vocab() == tokenizer.get_vocab()


def refuse_other_vocabulary(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Raises `ModelError` where the model in `path` gives tokens other ids: one engine renders for all of its models."""
    if not has_vocabulary(tokenizer, path):
        other = load_tokenizer(path)
        raise ModelError(
            f"{path} has another vocabulary ({len(other)} tokens) than {tokenizer.name_or_path} ({len(tokenizer)}): models that "
            "are compared or that score each other's answers must share a tokenizer. Give one of the same family."
        )
