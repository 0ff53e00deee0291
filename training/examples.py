"""What a prior learns from: latents of images, and the conditions that each goes with."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from models.autoencoders.shuffle import ShuffleAutoencoder
from models.autoencoders.vq import Tokenizer
from models.checkpoint import CheckpointError
from models.conditioning import Conditions
from models.networks.text_encoder import PromptEncoder, find_minilm, import_minilm
from training.data.bad_files import MAX_BAD_SHARE
from training.data.captioned import LabelNames, is_captioned, read_captions
from training.data.code_folder import read_codes
from training.data.dataset import DataError, describe_other_labels, scale_to_unit
from training.data.sources import load_dataset

logger = logging.getLogger(__name__)

_NUM_PREVIEWS = 64
_NUM_PREVIEWED_CLASSES = 10


@dataclass(frozen=True)
class TrainingData:
    """Training images (N, C, H, W) uint8 with labels (N, K) int64, and captions where they have some.

    preview_labels (M, K) and preview_prompts are what a run draws pictures of to show its progress. codes:
    (N, *grid), where there are these instead of images.
    """

    images: Tensor
    labels: Tensor
    label_names: LabelNames
    preview_labels: Tensor
    captions: tuple[tuple[str, ...], ...] = ()
    preview_prompts: tuple[str, ...] = ()
    codes: Tensor | None = None


@dataclass(frozen=True)
class Examples:
    """What is learnt, labels (N, K), and captions to draw from.

    targets: latents (N, d, h, w) bfloat16, or codes (N, h, w) int32. captions: None where the prior takes no
    prompt. sources: (N, kinds, d, h, w) bfloat16, of pictures that it is to draw larger. Tensors may lie on a
    GPU, the preview's on the CPU.
    """

    targets: Tensor
    labels: Tensor
    captions: "Captions | None"
    preview_conditions: Conditions
    sources: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def kept_by(self, keep: Callable[[Tensor], Tensor]) -> "Examples":
        """Return these examples with their tensors where ``keep`` puts them."""
        captions = self.captions
        if captions is not None:
            captions = Captions(keep(captions.rows), keep(captions.counts), keep(captions.states))
        sources = None if self.sources is None else keep(self.sources)
        kept = replace(self, targets=keep(self.targets), labels=keep(self.labels))
        return replace(kept, captions=captions, sources=sources)

    def conditions(self, rows: Tensor, generator: torch.Generator) -> Conditions:
        """Return the conditions of ``rows`` (B,), each with one of its captions and sources at random."""
        asked = self._asked(rows, generator)
        if self.sources is None:
            return asked
        sources = take(self.sources, rows)  # (B, kinds, d, h, w)
        kinds = torch.randint(sources.shape[1], rows.shape, generator=generator, device=generator.device)
        each = torch.arange(len(rows), device=sources.device)
        return replace(asked, source=sources[each, kinds.to(sources.device)].float())

    def _asked(self, rows: Tensor, generator: torch.Generator) -> Conditions:
        """Return labels and captions of ``rows`` (B,)."""
        labels = take(self.labels, rows)
        if self.captions is None:
            return Conditions(labels)
        draws = torch.rand(len(rows), generator=generator, device=generator.device)
        counts = take(self.captions.counts, rows)
        columns = (draws.to(counts.device, torch.float64) * counts).long()  # (B,)
        chosen = take(self.captions.rows, rows).gather(1, columns[:, None])[:, 0]  # (B,)
        return Conditions(labels, take(self.captions.states, chosen).float())


@dataclass(frozen=True)
class Captions:
    """The states (M, T, channels) bfloat16 of all captions, and which of them describe an example.

    rows: (N, most), of which the first ``counts`` (N,) of an example's are its own.
    """

    rows: Tensor
    counts: Tensor
    states: Tensor


def take(table: Tensor, rows: Tensor) -> Tensor:
    """Return ``rows`` (B,) of ``table`` (N, …), on the table's device, without waiting for it."""
    return table[rows.to(table.device, non_blocking=True)]


def read_training_data(
    source: str,
    *,
    image_size_px: int,
    channels: int,
    label_names: LabelNames | None = None,
    max_bad_share: float = MAX_BAD_SHARE,
) -> TrainingData:
    """Read the training images of a data set; a folder with captions gives prompts and any sets of labels.

    label_names: those that the labels are to be numbered by, of a pipeline. max_bad_share: see
    ``load_dataset``.

    Raises: DataError.
    """
    if not is_captioned(Path(source)):
        dataset = load_dataset(
            source, "train", image_size_px=image_size_px, channels=channels, max_bad_share=max_bad_share
        )
        names = {"class": dataset.class_names}
        if label_names is not None and dict(label_names) != names:
            raise DataError(describe_other_labels(source, names, label_names))
        previews = _preview_labels(len(dataset.class_names))
        return TrainingData(dataset.images, dataset.labels[:, None], names, previews)
    captions = read_captions(Path(source), label_names)
    captions.say(image_size_px=image_size_px, channels=channels)
    train = captions.take(captions.rows("train"))
    previewed = captions.take(captions.rows("held_out")) if captions.rows("held_out") else train
    num_previews = min(_NUM_PREVIEWS, len(previewed))
    previewed = previewed.take(torch.linspace(0, len(previewed) - 1, num_previews).long().tolist())
    data = train.read_images(image_size_px=image_size_px, channels=channels, max_bad_share=max_bad_share)
    return TrainingData(
        images=data.images,
        labels=data.labels,
        label_names=captions.label_names,
        preview_labels=previewed.labels,
        captions=tuple(line.caption for line in data.lines),
        preview_prompts=tuple(line.caption[0] for line in previewed.lines),
    )


def read_coded_data(folder: Path, tokenizer: ShuffleAutoencoder) -> TrainingData:
    """Read a folder of codes that this tokenizer made; see ``code_folder.read_codes``.

    Raises: DataError.
    """
    data = read_codes(folder, tokenizer.fingerprint())
    logger.info("%s: %d rows to train on, in %d classes", folder, len(data.codes), len(data.class_names))
    return TrainingData(
        images=torch.empty(0, *tokenizer.signal_shape, dtype=torch.uint8),
        labels=data.labels[:, None],
        label_names={"class": data.class_names},
        preview_labels=_preview_labels(len(data.class_names)),
        codes=data.codes,
    )


def _preview_labels(num_classes: int) -> Tensor:
    """Return eight rows (M, 1) of each of some classes."""
    classes = torch.linspace(0, num_classes - 1, min(num_classes, _NUM_PREVIEWED_CLASSES))
    return classes.long().repeat_interleave(8)[:, None]


def load_text_encoder(folder: Path | None, cache: Path) -> PromptEncoder:
    """Load a text encoder from a folder; without one, import all-MiniLM-L6-v2 from its package.

    Raises: CheckpointError.
    """
    if folder is None:
        folder = cache / "text_encoder"
        import_minilm(find_minilm()).save(folder)
    encoder = PromptEncoder.load(folder)
    if encoder.config.pooled_size is not None:
        raise CheckpointError(
            f"{folder}: holds CLIP, with which imported priors come; a prior is trained on states of a BERT"
            " (leave the folder out to get all-MiniLM-L6-v2)"
        )
    return encoder


def encode_examples(
    autoencoder: ShuffleAutoencoder | None,
    data: TrainingData,
    encoder: PromptEncoder | None,
    *,
    with_flips: bool,
    cache: Path,
    as_codes: bool = False,
) -> Examples:
    """Encode images and captions; the captions' states are kept in the folder ``cache``.

    Images become latents, or a tokenizer's codes. Without an autoencoder, they are left out. Flipped images
    are not added where there are captions, which may not hold of a mirror image, nor to codes, which have
    those that they were made with.
    """
    if data.codes is not None:
        assert isinstance(autoencoder, Tokenizer)
        targets = data.codes.int() if as_codes else look_up(autoencoder, data.codes)
        return Examples(targets, data.labels, None, Conditions(data.preview_labels))
    labels = data.labels

    def encode(images: Tensor) -> Tensor:
        if autoencoder is None:
            return torch.zeros(len(images), 0)
        if as_codes:
            assert isinstance(autoencoder, Tokenizer)
            return tokenize_images(autoencoder, images)
        return encode_images(autoencoder, images)

    targets = encode(data.images)
    if encoder is None:
        if with_flips and autoencoder is not None:
            targets = torch.cat([targets, encode(data.images.flip(-1))])
            labels = labels.repeat(2, 1)
        return Examples(targets, labels, None, Conditions(data.preview_labels))
    texts = list(dict.fromkeys(text for captions in data.captions for text in captions))
    row_of = {text: row for row, text in enumerate(texts)}
    previews = torch.stack([encoder.encode(prompt).states for prompt in data.preview_prompts])
    return Examples(
        targets=targets,
        labels=labels,
        captions=Captions(
            pad_sequence(
                [torch.tensor([row_of[text] for text in captions]) for captions in data.captions],
                batch_first=True,
            ),
            torch.tensor([len(captions) for captions in data.captions]),
            _encode_texts(encoder, texts, cache / "captions.safetensors"),
        ),
        preview_conditions=Conditions(data.preview_labels, previews),
    )


@torch.inference_mode()
def encode_images(autoencoder: ShuffleAutoencoder, images: Tensor) -> Tensor:
    """Return latents (N, d, h, w) bfloat16 of uint8 ``images`` (N, C, H, W); of a distribution, its mean."""
    device = autoencoder.latent_mean.device
    batches = [scale_to_unit(batch).to(device) for batch in images.split(500)]
    return torch.cat([autoencoder.encode(batch).to("cpu", torch.bfloat16) for batch in batches])


@torch.inference_mode()
def tokenize_images(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """Return codes (N, h, w) int32 of uint8 ``images`` (N, C, H, W)."""
    device = tokenizer.latent_mean.device
    batches = [scale_to_unit(batch).to(device) for batch in images.split(500)]
    return torch.cat([tokenizer.quantize(tokenizer.encode(batch)).codes.int().cpu() for batch in batches])


@torch.inference_mode()
def look_up(tokenizer: Tokenizer, codes: Tensor) -> Tensor:
    """Return latents (N, d, h, w) bfloat16 of ``codes`` (N, h, w)."""
    device = tokenizer.latent_mean.device
    batches = [tokenizer.lookup(batch.long().to(device)) for batch in codes.split(500)]
    return torch.cat([batch.to("cpu", torch.bfloat16) for batch in batches])


def _encode_texts(encoder: PromptEncoder, texts: Sequence[str], cache: Path) -> Tensor:
    """Return states (M, T, channels) bfloat16 of ``texts``, kept in ``cache`` for the next start."""
    digest = hashlib.sha256(repr((encoder.config, texts)).encode()).hexdigest()[:16]
    if (kept := _load_cache(cache)) and digest in kept:
        return kept[digest]
    shape = len(texts), encoder.config.max_tokens, encoder.config.hidden_size
    states = torch.empty(shape, dtype=torch.bfloat16)
    with tqdm(total=len(texts), desc="captions", unit="caption") as progress:
        for positions, encoded in encoder.encode_batches(texts):
            states[positions] = encoded.to(torch.bfloat16)
            progress.update(len(positions))
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_suffix(".partial")
    save_file({digest: states}, partial)
    partial.replace(cache)
    return states


def _load_cache(path: Path) -> dict[str, Tensor]:
    """Return what is kept in ``path``; nothing, where it is missing or damaged."""
    try:
        return load_file(path) if path.exists() else {}
    except (SafetensorError, OSError) as error:
        logger.warning("%s is damaged, and computed anew (%s)", path, error)
        return {}
