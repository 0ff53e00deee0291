"""What an evaluation measures with."""

from dataclasses import dataclass
from pathlib import Path

from models.options import AnySamplerName, GuidanceScale, NumSteps, Options, Temperature
from training.data.sources import FASHION_MNIST
from training.evaluation.classifier import DEFAULT_TRAININGS, ClassifierTraining


@dataclass(frozen=True)
class EvaluationOptions:
    """What to measure with. None leaves a sampling option to the pipeline's defaults.

    data: as ``load_dataset`` takes it. num_images: at most how many are generated, and how many real ones are
    drawn from the training split. effort: so many sweeps also search codes for a data set's images; the
    nearest are always measured. with_lite0: also measure in features of EfficientNet-Lite0, for photographs.
    """

    data: str = FASHION_MNIST
    num_images: int = 10_000
    batch_size: int = 250
    seed: int = 0
    device: str = "cpu"
    num_steps: NumSteps | None = None
    guidance_scale: GuidanceScale | None = None
    sampler: AnySamplerName | None = None
    temperature: Temperature | None = None
    effort: int = 0
    num_neighbours: int = 5
    with_lite0: bool = False
    trainings: tuple[ClassifierTraining, ...] = DEFAULT_TRAININGS
    classifier_folder: Path = Path("runs/classifiers")

    def __post_init__(self) -> None:
        if self.num_images <= self.num_neighbours:
            raise ValueError(
                f"num_images must exceed num_neighbours {self.num_neighbours}, got {self.num_images}"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.effort < 0:
            raise ValueError(f"effort must be at least 0, got {self.effort}")

    @property
    def data_name(self) -> str:
        """A name that tells nothing of this machine's folders."""
        name = self.data.partition(":")[0]
        return name if name == FASHION_MNIST else Path(self.data).resolve().name

    def sampling(self, defaults: Options) -> Options:
        """Return a pipeline's ``defaults``, changed to what these options give.

        Raises: ConfigError when the pipeline has no such option.
        """
        names = ("num_steps", "guidance_scale", "sampler", "temperature")
        return defaults.changed({name: value for name in names if (value := getattr(self, name)) is not None})
