"""What a prior learns from: latents of images, and the conditions that each goes with."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from models.conditioning import Conditions
from models.text_encoder import PromptEncoder, find_minilm, import_minilm
from models.tokenizer import Tokenizer
from training.data.captioned import Caption, is_captioned, load_captioned
from training.data.dataset import scale_to_unit
from training.data.sources import load_dataset

_NUM_KEYWORD_CAPTIONS = 3
_NUM_SHOWN = 64


@dataclass(frozen=True)
class Examples:
    """Latents (N, d, h, w) bfloat16, labels (N, K), and captions to draw from.

    caption_rows: for each example, the rows of caption_states (M, T, channels) that describe it; empty where
    the prior takes no prompt. shown: the conditions of the pictures that a run draws of its progress.
    """

    latents: Tensor
    labels: Tensor
    caption_rows: tuple[Tensor, ...]
    caption_states: Tensor | None
    shown: Conditions
    class_names: tuple[str, ...] = ()
    style_names: tuple[str, ...] = ()
    group_names: tuple[str, ...] = ()
    prompt_encoder: PromptEncoder | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def conditions(self, rows: Tensor, generator: torch.Generator) -> Conditions:
        """Return the conditions of ``rows`` (B,), each with one of its captions at random."""
        if self.caption_states is None:
            return Conditions(self.labels[rows])
        draws = torch.rand(len(rows), generator=generator).tolist()
        captions = [
            self.caption_rows[row][int(draw * len(self.caption_rows[row]))]
            for row, draw in zip(rows.tolist(), draws, strict=True)
        ]
        return Conditions(self.labels[rows], self.caption_states[torch.stack(captions)].float())


def load_examples(
    tokenizer: Tokenizer, data: str, *, with_flips: bool, text_encoder: Path | None, cache: Path
) -> Examples:
    """Encode a data set's training images; a folder with captions gives styles, groups and prompts.

    text_encoder: a folder with ``text_encoder.safetensors``; None imports all-MiniLM-L6-v2 from its package.
    cache: a folder to keep the captions' states in.
    """
    if is_captioned(Path(data)):
        return _captioned_examples(tokenizer, Path(data), text_encoder, cache)
    config = tokenizer.config
    dataset = load_dataset(data, "train", image_size_px=config.image_size_px, channels=config.image_channels)
    latents = encode_images(tokenizer, dataset.images)
    if with_flips:
        latents = torch.cat([latents, encode_images(tokenizer, dataset.images.flip(-1))])
    return Examples(
        latents=latents,
        labels=dataset.labels.repeat(2 if with_flips else 1)[:, None],
        caption_rows=(),
        caption_states=None,
        shown=Conditions(torch.arange(len(dataset.class_names)).repeat_interleave(8)[:, None]),
        class_names=dataset.class_names,
    )


@torch.inference_mode()
def encode_images(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """Return latents (N, d, h, w) bfloat16 of uint8 ``images`` (N, C, H, W)."""
    device = tokenizer.latent_mean.device
    batches = [scale_to_unit(batch).to(device) for batch in images.split(500)]
    return torch.cat([tokenizer.encode(batch).to("cpu", torch.bfloat16) for batch in batches])


def caption_texts(caption: Caption) -> list[str]:
    """Return ways in which people may ask for an image: by its name, by keywords, with its style."""
    article = "an" if caption.name[:1].lower() in "aeiou" else "a"
    style = caption.style.replace("-", " ")
    texts = [
        caption.name,
        f"{article} {caption.name}",
        f"{caption.name} emoji",
        f"{article} {caption.name} emoji in {style} style",
    ]
    if caption.keywords:
        texts.append(f"{caption.name}, {', '.join(caption.keywords[:6])}")
        for number in range(_NUM_KEYWORD_CAPTIONS):
            drawn = sorted(caption.keywords, key=lambda word: _order(f"{caption.code_point} {number} {word}"))
            texts.append(", ".join(drawn[: 2 + number]))
    return list(dict.fromkeys(texts))


def _captioned_examples(
    tokenizer: Tokenizer, folder: Path, text_encoder: Path | None, cache: Path
) -> Examples:
    data = load_captioned(folder)
    train = data.where("train")
    if text_encoder is None:
        text_encoder = cache / "text_encoder"
        import_minilm(find_minilm()).save(text_encoder)
    encoder = PromptEncoder.load(text_encoder)
    texts_of = [caption_texts(caption) for caption in train.captions]
    row_of = {
        text: row for row, text in enumerate(dict.fromkeys(text for texts in texts_of for text in texts))
    }
    shown = data.where("held_out")
    if not len(shown):
        shown = train
    rows = torch.linspace(0, len(shown) - 1, min(_NUM_SHOWN, len(shown))).long()
    shown_texts = torch.stack([encoder.encode(shown.captions[row].name).states for row in rows.tolist()])
    return Examples(
        latents=encode_images(tokenizer, train.images),
        labels=torch.stack([train.styles, train.groups], dim=1),
        caption_rows=tuple(torch.tensor([row_of[text] for text in texts]) for texts in texts_of),
        caption_states=_encode_texts(encoder, list(row_of), cache / "captions.safetensors"),
        shown=Conditions(torch.stack([shown.styles, shown.groups], dim=1)[rows], shown_texts),
        style_names=data.style_names,
        group_names=data.group_names,
        prompt_encoder=encoder,
    )


def _encode_texts(encoder: PromptEncoder, texts: list[str], cache: Path) -> Tensor:
    """Return states (M, T, channels) bfloat16 of ``texts``, kept in ``cache`` for the next start."""
    digest = hashlib.sha256(repr((encoder.config, texts)).encode()).hexdigest()[:16]
    if cache.exists() and digest in (kept := load_file(cache)):
        return kept[digest]
    shape = len(texts), encoder.config.max_tokens, encoder.config.hidden_size
    states = torch.empty(shape, dtype=torch.bfloat16)
    with tqdm(total=len(texts), desc="captions", unit="caption") as progress:
        for positions, encoded in encoder.encode_batches(texts):
            states[positions] = encoded.to(torch.bfloat16)
            progress.update(len(positions))
    cache.parent.mkdir(parents=True, exist_ok=True)
    save_file({digest: states}, cache)
    return states


def _order(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
