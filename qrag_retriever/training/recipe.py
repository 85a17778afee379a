"""The recipe: every setting of a training run, typed, with unit and default; read from a TOML file, strictly."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from qrag_retriever.config import Mode, Normalize, Positions
from qrag_retriever.errors import RecipeError
from qrag_retriever.state import StateOrder


class Settings(BaseModel):
    """Base of all groups of settings: unknown keys are errors, values are neither converted nor changed later."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Beta = Annotated[float, Field(ge=0, lt=1)]
# A shell does not replace the tilde of ``--set key=~/place``.
Place = Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)]


class LoraSettings(Settings):
    """Low-rank adapters (peft) in place of full fine-tuning; merged into the weights of the saved model."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class BlendSettings(Settings):
    """Weights that those of a trained pair are mixed with before training goes on.

    Fine-tuned weights, moved some way back to those that they come from, keep most of what they learned and regain
    what they forgot (Wortsman et al., arXiv 2109.01903). Two pairs that were trained from one encoder on different
    data can be added up: their differences from it, each with a factor (Ilharco et al., arXiv 2212.04089).
    """

    encoder: Place = Field(
        description="The encoder that the pair was trained from, or another pair's folder that was trained from it."
    )
    share: float = Field(gt=0, lt=1, description="Of the other weights in the sum.")
    own_share: float | None = Field(
        default=None, gt=0, le=1, description="Of the pair's own weights in the sum; None: the rest to 1."
    )
    base: Place | None = Field(
        default=None,
        description="The encoder that both pairs were trained from, if the shares do not add up to 1: its weights "
        "count for the rest, which is below 0 where the shares add up to more.",
    )

    @model_validator(mode="after")
    def _check_rest(self) -> BlendSettings:
        if (self.own_share is None) != (self.base is None):
            raise ValueError("own_share and base belong together: give both or none")
        return self


def _as_list(value: Any) -> Any:
    """Take one table where a list of them may be."""
    return [value] if isinstance(value, (Mapping, BlendSettings)) else value


class ModelSettings(Settings):
    """Where training starts."""

    encoder: Place = Field(
        default="all-MiniLM-L6-v2",
        description="A sentence-transformers name or folder, or a Q-RAG model folder.",
    )
    num_layers: int | None = Field(default=None, ge=1, description="Keep only the first layers.")
    positions: Positions = Field(default="relative", description="Of chunks: relative to the picks, or absolute.")
    stride: int | None = Field(
        default=None,
        ge=2,
        description="Position units between segments; nine tenths of them tell the chunks of a segment apart.",
    )
    state_order: StateOrder = Field(default="document", description="Of the picks in a state, in document mode.")
    normalize: Normalize = Field(
        default=False,
        description="Scale embeddings to length 1 before output_scale: Q-values then lie within its square. "
        '"chunks": those of chunks alone, so that a state can say by its length how much there is to find.',
    )
    output_scale: float | None = Field(
        default=None, gt=0, description="Factor on embeddings; None: Q-values of the untrained pair reach about 1."
    )
    max_chunk_tokens: int | None = Field(default=None, ge=3, description="Tokens of a chunk as an action.")
    max_chunk_tokens_in_state: int | None = Field(default=None, ge=3, description="Tokens of a piece of a state.")
    frozen: Literal["none", "word_embeddings", "embeddings"] = Field(
        default="word_embeddings", description="Not trained: nothing, the table of words, or all embedding tables."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="In gradient passes; rollouts and targets have none.")
    lora: LoraSettings | None = Field(default=None, description="None: all weights that are not frozen are trained.")
    blend: Annotated[list[BlendSettings], BeforeValidator(_as_list)] = Field(
        default=[],
        description="Of a trained pair, with the encoder it was or with other pairs; one, or a list, in turn.",
    )
    trust_remote_code: bool = Field(default=False, description="Run code that comes with the encoder.")


class DataSettings(Settings):
    """One source of samples."""

    source: Place = Field(description="A data set's name (babilong-qa2, hotpotqa, ...) or a .jsonl file.")
    weight: float = Field(default=1.0, gt=0, description="Share of the drawn samples, relative to other sources.")
    step_limit: int | None = Field(default=None, ge=1, description="Picks of an episode; None: the data set's own.")
    mode: Mode | None = Field(
        default=None,
        description='Of a .jsonl: chunks of one text, or loose passages. "document" shuffles passages of a data set.',
    )
    split: Literal["train", "validation", "test"] | None = Field(
        default=None, description="Of a data set; None: train, or validation in [[validation]]."
    )
    max_samples: int | None = Field(default=None, ge=1, description="Use only so many questions, drawn by the seed.")
    withhold_supporting: bool = Field(default=False, description="Train as if only answers were known.")
    options: dict[str, Any] = Field(default_factory=dict, description="Handed to the data set's loader.")


class RewardSettings(Settings):
    """What a pick earns."""

    kind: Literal["supporting_facts", "answer_contained", "llm"] = "supporting_facts"
    completion_reward: float = Field(default=1.0, gt=0)
    per_fact_reward: float = Field(default=0.0, ge=0, description="For every newly found fact (supporting_facts).")
    penalize_extra_steps: bool = Field(
        default=True, description="Completion earns less after more picks (llm: with every_step)."
    )
    terminate: bool = Field(default=False, description="End the episode at completion, not at the step limit.")
    llm: str | None = Field(default=None, description="package.module:callable that returns a chat model (llm).")
    judge: Literal["exact", "f1"] = Field(default="exact", description="Compares the LLM's answer with the known ones.")
    every_step: bool = Field(default=False, description="Ask the LLM after every pick, not only at the end.")
    batch_size: int = Field(default=16, ge=1, description="Prompts sent to the LLM together.")

    @model_validator(mode="after")
    def _check_use(self) -> RewardSettings:
        for key, kinds in _KINDS_OF_REWARD.items():
            if self.kind not in kinds and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} does nothing with kind = {self.kind!r}; leave it out")
        if self.kind == "llm" and self.terminate and not self.every_step:
            raise ValueError("terminate needs every_step = true: else the LLM is asked at the end only")
        return self


_KINDS_OF_REWARD = {
    "per_fact_reward": ("supporting_facts",),
    "llm": ("llm",),
    "judge": ("llm",),
    "every_step": ("llm",),
    "batch_size": ("llm",),
}


class WarmStartSettings(Settings):
    """Imitation of annotated facts before PQN."""

    num_updates: int = Field(default=600, ge=0)
    samples_per_update: int = Field(default=24, ge=1)
    states_per_sample: int = Field(default=2, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    warmup_updates: int = Field(default=20, ge=0)
    end_share: float = Field(default=0.1, ge=0, le=1, description="The last learning rate, as a share of the first.")
    value_weight: float = Field(default=5.0, ge=0, description="Of the squared error to the closed-form return.")
    complete_share: float = Field(default=0.2, ge=0, le=1, description="States in which nothing is missing.")
    wrong_share: float = Field(default=0.5, ge=0, le=1, description="States with wrong picks.")
    hard_share: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="Wrong picks that are likely mistakes; states of the likeliest facts.",
    )
    start_temperature: float = Field(
        default=0.02,
        gt=0,
        description="Divides Q-values in the cross-entropy; learned. The larger, the further right chunks must be "
        "above the others, against the returns that they are worth.",
    )
    max_candidates: int = Field(default=512, ge=2, description="Chunks per state in the loss.")
    in_batch_negatives: bool = Field(
        default=True,
        description="Loose passages of an update's other questions, of the same process, are wrong candidates too.",
    )
    fresh_tokens: int = Field(
        default=3000,
        ge=1,
        description="Tokens of chunks per update and process, about, that are embedded with gradients.",
    )
    patience_updates: int | None = Field(
        default=None, ge=1, description="Go on to PQN when validation has not improved for so many updates."
    )


class PQNSettings(Settings):
    """Value-based reinforcement learning."""

    num_updates: int = Field(default=300, ge=0)
    num_envs: int = Field(default=16, ge=1, description="Episodes that run in lockstep, over all processes.")
    num_steps: int = Field(default=4, ge=1, description="Picks per environment in a rollout.")
    accumulate: int = Field(default=1, ge=1, description="Rollouts per optimiser step.")
    gamma: float = Field(default=0.99, ge=0, le=1, description="Discount, per pick.")
    lam: float = Field(default=0.65, ge=0, le=1, description="Lambda of the lambda-returns.")
    alpha: float = Field(default=0.02, gt=0, description="Temperature of policy and soft values, in reward units.")
    alpha_end_share: float = Field(default=0.1, gt=0, le=1, description="The last temperature, as a share of alpha.")
    value: Literal["soft", "hard"] = Field(default="hard", description="Soft or hard maximum in the values of states.")
    top_k: int = Field(default=5, ge=1, description="Chunks that policy and soft values look at.")
    num_alternatives: int = Field(
        default=0,
        ge=0,
        description="Of each state's best other chunks, so many are valued as well, by what picking them would earn "
        "and lead to. The reward judges as many more picks.",
    )
    targets: bool = Field(default=True, description="Whether values come from slowly moving target encoders.")
    target_chunks: Literal["cached", "encoder"] = Field(
        default="cached",
        description="Chunk embeddings in values: the cached ones (as old as run.refresh_updates lets them become), or "
        "the target action encoder's own.",
    )
    tau: float = Field(default=0.05, gt=0, le=1, description="Share of the way that targets move per update.")
    twin_heads: bool = Field(default=True, description="Two Q-heads of half the embedding, or one of all of it.")
    clip_values: bool = Field(default=True, description="Clip values and targets to the reward's range.")
    zero_when_settled: bool = Field(
        default=True, description="States in which nothing more can be earned are worth 0, not what targets say."
    )
    imitation_weight: float = Field(default=0.1, ge=0, description="Of the warm start's cross-entropy, kept on.")
    imitation_fade_updates: int | None = Field(default=None, ge=1, description="Fades to 0; None: over all updates.")
    learning_rate: float = Field(default=1e-4, gt=0)
    warmup_updates: int = Field(default=20, ge=0)
    schedule: Literal["linear", "cosine"] = "linear"
    end_share: float = Field(default=0.1, ge=0, le=1, description="The last learning rate, as a share of the first.")
    fresh_chunks: int = Field(
        default=192,
        ge=0,
        description="Chunks embedded with gradients for the imitation: right ones, then likely mistakes.",
    )
    max_candidates: int = Field(default=512, ge=2, description="Chunks per state in the imitation.")
    reuse_states: bool = Field(
        default=True,
        description="Take gradients through the rollout's own state embeddings; they are the same without dropout.",
    )


class OptimizerSettings(Settings):
    """AdamW."""

    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.98), strict=False)
    eps: float = Field(default=1e-6, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_gradient_norm: float = Field(default=2.0, gt=0)


class RunSettings(Settings):
    """How a run is carried out."""

    output: Place = Field(default="runs/qrag", description="Folder of checkpoint, logs and model.")
    seed: int = Field(default=1, ge=0, lt=2**63)
    device: str | None = Field(default=None, description="None: CUDA, then MPS, then CPU.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Of the arithmetic; weights are float32. auto: bfloat16 where it is quicker."
    )
    refresh_updates: int = Field(default=50, ge=1, description="Chunk embeddings are thrown away this often.")
    evaluate_updates: int = Field(default=50, ge=1, description="Validation this often.")
    validation_samples: int = Field(default=200, ge=1)
    keep: Literal["best", "last"] = Field(default="best", description="The model on validation that is kept.")
    checkpoint_minutes: float = Field(default=5.0, gt=0)
    tensorboard: bool = True
    plain_batches: bool = Field(
        default=False,
        description="Pad to powers of two, never sort by length, embed repeated texts again: as the paper's code does.",
    )


class Recipe(Settings):
    """Everything that decides a training run."""

    model: ModelSettings = ModelSettings()
    data: list[DataSettings] = Field(min_length=1)
    validation: list[DataSettings] = Field(
        default=[], description="Sources of validation; none: the validation split of the training sources."
    )
    reward: RewardSettings = RewardSettings()
    warm_start: WarmStartSettings = WarmStartSettings()
    pqn: PQNSettings = PQNSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    run: RunSettings = RunSettings()


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: A TOML file.
        overrides: ``key=value`` each, the key with dots (``pqn.alpha=0.05``, ``data.0.weight=2``), the value in TOML;
            what is not valid TOML is a string.

    Raises:
        RecipeError: If the file is missing or no TOML, or a key or value is wrong; names the nearest known key.
    """
    path = Path(path)
    toml = _toml()
    try:
        # Some editors put a byte order mark in front.
        content = toml.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # also of a number of thousands of digits
        raise RecipeError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _override(content, override)
    return parse_recipe(content, str(path))


def parse_recipe(content: Mapping[str, Any], name: str = "the recipe") -> Recipe:
    """Check settings that were read from somewhere; errors as in `read_recipe`."""
    try:
        return Recipe(**content)
    except ValidationError as error:
        raise RecipeError("\n".join([f"{name} has wrong settings:", *map(_complaint, error.errors())])) from error


def _toml() -> Any:
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib
    import tomli

    return tomli


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"expected key=value after --set, got {override!r}; for example pqn.alpha=0.05")
    toml = _toml()
    try:
        parsed = toml.loads(f"value = {text}")
        value = parsed.pop("value")
    except RecursionError:
        raise RecipeError(f"the value of {key!r} after --set is nested too deeply") from None
    except ValueError:
        parsed, value = {}, text.strip()
    if parsed:
        raise RecipeError(f"expected one value after --set {key}=, got {text!r}; write --set once for each setting")
    *groups, last = key.strip().split(".")
    place: Any = content
    for depth, group in enumerate(groups):
        if isinstance(place, list):
            place = _item(place, group, override)
        elif isinstance(place, dict):
            place = place.setdefault(group, {})
        else:
            raise RecipeError(f"{'.'.join(groups[:depth])} in --set {override!r} is a value and has no keys")
    if isinstance(place, list):
        _item(place, last, override)
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise RecipeError(f"{'.'.join(groups)} in --set {override!r} is a value and has no keys")


# Of a place in a list; Python itself reads no number of thousands.
_MOST_DIGITS = 9


def _item(items: list[Any], number: str, override: str) -> Any:
    if not number.isdecimal() or len(number) > _MOST_DIGITS or int(number) >= len(items):
        raise RecipeError(f"expected a number from 0 to {len(items) - 1} in place of {number!r} in --set {override!r}")
    return items[int(number)]


_NO_TEXT = ("bool_type", "int_type", "float_type")


def _complaint(error: Any) -> str:
    """Say one thing that is wrong, and the nearest known key where a key is not known."""
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "list_type" and place in ("data", "validation") and isinstance(error["input"], dict):
        return f"  {place}: one source of several; write [[{place}]] with double brackets, got {error['input']!r}"
    if error["type"] != "extra_forbidden":
        got = "" if error["type"] == "missing" else f", got {error['input']!r}"
        if error["type"] in _NO_TEXT and isinstance(error["input"], str):
            got += "; in TOML: true, 3 or 0.05, without quotes"
        return f"  {place}: {error['msg']}{got}"
    known = _fields_at(error["loc"][:-1])
    nearest = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.0)
    hint = f"; nearest known key: {nearest[0]}" if nearest else ""
    return f"  {place}: unknown key{hint} (known here: {', '.join(sorted(known))})"


_GROUPS: dict[str, type[Settings]] = {
    "model": ModelSettings, "data": DataSettings, "validation": DataSettings, "reward": RewardSettings,
    "warm_start": WarmStartSettings, "pqn": PQNSettings, "optimizer": OptimizerSettings, "run": RunSettings,
    "lora": LoraSettings, "blend": BlendSettings,
}  # fmt: skip


def _fields_at(location: Sequence[Any]) -> list[str]:
    groups = [_GROUPS[part] for part in location if part in _GROUPS]
    return list((groups[-1] if groups else Recipe).model_fields)
