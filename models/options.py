"""How a prior samples: the options of each family, their defaults and bounds. Without torch."""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic_core import ErrorDetails

SamplerName = Literal["euler", "heun", "dpmpp_2m", "ddim", "ddpm"]
CodeSamplerName = Literal["confidence", "ancestral"]  # of a masked prior
AnySamplerName = Literal[SamplerName, CodeSamplerName]
Precision = Literal["float32", "tf32"]  # of an autoencoder; tf32 (10 bits of a product's 23) is of GPUs
MAX_STEPS = 250
MAX_GUIDANCE_SCALE = 20.0

_MAX_ERRORS_TOLD = 3
_MAX_CHARS_TOLD = 60

CHECKED = ConfigDict(extra="forbid")
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
UnitTime = Annotated[float, Field(ge=0, le=1)]
# Strict: a number is a number, and neither true nor "7". Where any number is wanted, a whole one is, too.
NumSteps = Annotated[int, Strict(), Field(ge=1, le=MAX_STEPS)]
GuidanceScale = Annotated[float, Strict(), Field(ge=0, le=MAX_GUIDANCE_SCALE, allow_inf_nan=False)]
Strength = Annotated[float, Strict(), Field(gt=0, le=1, allow_inf_nan=False)]
Temperature = Annotated[float, Strict(), Field(ge=0, le=10, allow_inf_nan=False)]
TopK = Annotated[int, Strict(), Field(ge=0, le=2**20)]
TopP = Annotated[float, Strict(), Field(gt=0, le=1)]
MinP = Annotated[float, Strict(), Field(ge=0, le=1)]
RepetitionWindow = Annotated[int, Strict(), Field(ge=0, le=4096)]


class ConfigError(ValueError):
    """A configuration that can't be used; the message names the field, the limit and the value."""


def describe_invalid(error: ValidationError) -> str:
    """Return what is wrong with fields, in one line: the first three of them, and how many more."""
    found = error.errors(include_url=False)
    told = "; ".join(map(_describe, found[:_MAX_ERRORS_TOLD]))
    return told + (f"; and {len(found) - _MAX_ERRORS_TOLD} more" if found[_MAX_ERRORS_TOLD:] else "")


def _describe(error: ErrorDetails) -> str:
    message, got = error["msg"], repr(error["input"])
    shown = f", got {got if len(got) <= _MAX_CHARS_TOLD else got[:_MAX_CHARS_TOLD] + '…'}"
    match error["type"]:
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
            message, shown = "is missing", ""
        case "unexpected_keyword_argument" | "extra_forbidden":
            message, shown = "there is no such field", ""
        case "value_error":  # ours, which says what was got
            message, shown = message.removeprefix("Value error, "), ""
        case "tuple_type" | "list_type":
            message = "should be a list"
        case "dict_type" | "dataclass_type" | "mapping_type":
            message = "should be an object"
    message = message.removeprefix("Input ").removeprefix("String ")
    return ": ".join([*filter(None, [".".join(map(str, error["loc"]))]), message + shown])


class OptionFields(BaseModel):
    """The options that a request may name, of all families together; left out, a pipeline's default holds."""

    num_steps: NumSteps | None = Field(
        default=None, description="Denoising steps; the pipeline's default when left out."
    )
    guidance_scale: GuidanceScale | None = Field(
        default=None,
        description="How strongly what is asked for is enforced; 1 is not at all beyond the model's own.",
    )
    sampler: AnySamplerName | None = Field(
        default=None,
        description="How steps are taken, where the pipeline can; its default when left out. `ddim` and"
        " `ddpm` are of diffusion priors, `euler` of flow priors,"
        " `confidence` and `ancestral` of masked ones.",
    )
    strength: Strength | None = Field(
        default=None,
        description="With a `source`: how much of it is drawn anew. Sampling starts at this share of noise,"
        " a masked prior's with this share of the codes masked, and takes this share of the steps, rounded,"
        " at least one. The pipeline's default when left out; with a `mask`, 1.",
    )
    temperature: Temperature | None = Field(
        default=None,
        description="Of draws of codes: below 1 likely ones become likelier, 0 takes the likeliest.",
    )
    top_k: TopK | None = Field(
        default=None, description="Draw from so many of the likeliest codes only; 0 is all of them."
    )
    top_p: TopP | None = Field(
        default=None, description="Draw from the likeliest codes only that reach this share together."
    )
    min_p: MinP | None = Field(
        default=None, description="Draw only codes of at least this share of the likeliest one's probability."
    )
    repetition_window: RepetitionWindow | None = Field(
        default=None,
        description="A code that makes up more than a tenth of so many before it is drawn once more, from"
        " all codes; 0 is off.",
    )


@dataclass(frozen=True)
class Options:
    """What every family's options have in common; ``requestable`` names those that a request may set.

    A family with a ``strength`` among them also draws sources anew. Of another, ``why_no_edits`` may say what
    stands against it.
    """

    requestable: ClassVar[tuple[str, ...]] = ()
    why_no_edits: ClassVar[str | None] = None

    def variants(self) -> tuple[Self, ...]:
        """Return options that bring about every kind of call, for the check of the seed promise."""
        return (self,)

    def narrowed(self, name: str) -> dict[str, Any]:
        """Return what of an option's JSON schema is narrower in this family than in all together."""
        return {}

    def changed(self, given: dict[str, Any]) -> Self:
        """Return these options with those that a request gives.

        Raises: ConfigError naming the options of this family, if one is of another, or what is wrong with
        a value that is.
        """
        given = _without_former(given)
        for name in given:
            if name not in self.requestable:
                raise ConfigError(f"{name}: this pipeline has {', '.join(self.requestable) or 'no options'}")
        try:
            return replace(self, **given)
        except ValidationError as error:
            raise ConfigError(describe_invalid(error)) from error


@checked_dataclass(frozen=True, config=CHECKED)
class FlowOptions(Options):
    """How a flow prior samples latents.

    Guidance is applied where the time ``t`` (0 is noise, 1 is data) lies in ``guidance_interval``
    (Kynkäänniemi et al. 2024, arXiv:2404.07724). With a ``time_easing`` of 0 all steps of time are equal;
    up to 1, those near the noise and near the data get shorter (``samplers.time_grid``). ``strength`` is for
    samples that start from a source (SDEdit, Meng et al. 2022, arXiv:2108.01073).
    """

    requestable: ClassVar[tuple[str, ...]] = ("num_steps", "guidance_scale", "sampler", "strength")
    samplers: ClassVar[tuple[SamplerName, ...]] = ("euler", "heun", "dpmpp_2m")

    num_steps: NumSteps = 16
    sampler: SamplerName = "dpmpp_2m"
    guidance_scale: GuidanceScale = 1.0
    guidance_interval: tuple[UnitTime, UnitTime] = (0.0, 1.0)
    time_easing: UnitTime = 0.0
    strength: Strength = 0.6

    def __post_init__(self) -> None:
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ConfigError(f"guidance_interval must be (low, high), got {self.guidance_interval}")
        self._check_sampler(self.sampler)

    def narrowed(self, name: str) -> dict[str, Any]:
        """Return the samplers that this family has."""
        kinds: list[dict[str, Any]] = [{"enum": list(self.samplers), "type": "string"}, {"type": "null"}]
        return {"anyOf": kinds} if name == "sampler" else {}

    def changed(self, given: dict[str, Any]) -> Self:
        """Return these options with those that a request gives.

        Raises: ConfigError naming the options of this family, or its samplers, if one is of another.
        """
        if "sampler" in given:
            self._check_sampler(given["sampler"])
        return super().changed(given)

    def _check_sampler(self, sampler: SamplerName) -> None:
        if sampler not in self.samplers:
            raise ConfigError(f"sampler: this pipeline has {', '.join(self.samplers)}, got {sampler!r}")

    def variants(self) -> tuple[Self, ...]:
        """Return guided calls."""
        return (replace(self, guidance_scale=2.0, guidance_interval=(0.0, 1.0), num_steps=16),)


@checked_dataclass(frozen=True, config=CHECKED)
class DiffusionOptions(FlowOptions):
    """How a diffusion prior samples latents: at the timesteps that its authors take for so many steps."""

    samplers: ClassVar[tuple[SamplerName, ...]] = ("ddim", "ddpm", "dpmpp_2m", "heun")

    num_steps: NumSteps = 50
    sampler: SamplerName = "ddim"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time_easing:
            raise ConfigError(f"time_easing must be 0 for a diffusion prior, got {self.time_easing}")


@checked_dataclass(frozen=True, config=CHECKED)
class AutoregressiveOptions(Options):
    """How an autoregressive prior draws codes, one after another.

    temperature: of the draws; 0 takes the likeliest code. top_k, top_p and min_p: which codes are drawn at
    all (``models/priors/code_draws.py``). repetition_window: of so many codes before, more than a tenth being
    the one that is drawn, it is drawn once more, from all; 0 is off.
    """

    requestable: ClassVar[tuple[str, ...]] = (
        "guidance_scale",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_window",
    )
    why_no_edits: ClassVar[str | None] = (
        "it draws codes one after another, rows first, each to fit those before it alone, so what is known"
        " further on would not be fitted; pipelines of flow, diffusion and masked priors can"
    )

    guidance_scale: GuidanceScale = 1.0
    temperature: Temperature = 1.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    min_p: MinP = 0.0
    repetition_window: RepetitionWindow = 0


@checked_dataclass(frozen=True, config=CHECKED)
class MaskedOptions(Options):
    """How a masked prior fills in codes, some at each step.

    sampler: ``confidence`` keeps the surest draws of a step, on a cosine schedule (MaskGIT, Chang et al.
    2022, arXiv:2202.04200), where ``choice_temperature`` is of the Gumbel noise on how sure they are;
    ``ancestral`` keeps each with the same chance (MDLM, Sahoo et al. 2024, arXiv:2406.07524). temperature: of
    the draws; 0 takes the likeliest code. strength: of a source's codes, the share that is masked again.
    """

    requestable: ClassVar[tuple[str, ...]] = (
        "num_steps",
        "guidance_scale",
        "sampler",
        "temperature",
        "strength",
    )

    num_steps: NumSteps = 12
    sampler: CodeSamplerName = "confidence"
    guidance_scale: GuidanceScale = 1.0
    temperature: Temperature = 1.0
    choice_temperature: Annotated[float, Field(ge=0, le=100)] = 4.5
    strength: Strength = 0.6


FAMILIES: dict[str, type[Options]] = {
    "flow": FlowOptions,
    "dit": DiffusionOptions,
    "sit": FlowOptions,
    "autoregressive": AutoregressiveOptions,
    "masked": MaskedOptions,
    "llamagen": AutoregressiveOptions,
    "amused": MaskedOptions,
}


def read_options(family: Any, raw: Any) -> Options:
    """Return the options of a family of priors from JSON.

    Raises: ConfigError.
    """
    if not isinstance(family, str) or family not in FAMILIES:
        raise ConfigError(f"prior: known are {', '.join(FAMILIES)}, got {family!r}")
    try:
        return TypeAdapter(FAMILIES[family]).validate_python(_without_former(raw))
    except ValidationError as error:
        raise ConfigError(f"defaults of a {family} prior: {describe_invalid(error)}") from error


def _without_former(raw: Any) -> Any:
    """Return defaults, or a job's options, without the one that is no more and was off when it was 1."""
    if not isinstance(raw, dict) or raw.get("cache_interval") != 1:
        return raw
    return {name: value for name, value in raw.items() if name != "cache_interval"}


def option_schemas(options: Options) -> dict[str, dict[str, Any]]:
    """Return the JSON schemas of the options that a request may set, by name, as this family takes them."""
    own = TypeAdapter(type(options)).json_schema()["properties"]
    described = OptionFields.model_json_schema()["properties"]
    return {
        name: {
            "description": described[name]["description"],
            **{key: value for key, value in own[name].items() if key != "default"},
        }
        for name in options.requestable
        if name in described
    }


def requested(options: Options) -> dict[str, Any]:
    """Return the options that a request may set, by name, with their values."""
    return {
        each.name: getattr(options, each.name) for each in fields(options) if each.name in options.requestable
    }
