"""A small pipeline of aMUSEd with random weights, in the folder that diffusers would save it to.

``published/amused.safetensors`` has what ``AmusedPipeline`` of diffusers 0.42.1 made of it once, with the text
encoder and the words of transformers 5.24.0, and the names and shapes of that encoder.
"""

import json
import warnings
from pathlib import Path

from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel

from tests.models.importers.published import small, weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import AmusedScheduler, UVit2DModel, VQModel

PROMPTS = ("A red  CAT's café, 2 times!", "rain 猫 🚀", "", "the " * 20)
NUM_CODES, MASK_ID = 32, 39
MERGES = ("t h", "th e</w>", "r e", "re d</w>", "c a", "ca t</w>", "a i", "r ai", "rai n</w>")
TEXT = {
    "architectures": ["CLIPTextModelWithProjection"],
    "vocab_size": 523,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "projection_dim": 10,
    "hidden_act": "quick_gelu",
    "eos_token_id": 2,  # as all of CLIP say, whose largest id is the end mark
    "layer_norm_eps": 1e-5,
}


def transformer(**changes) -> UVit2DModel:
    """Return a network that draws 4×4 codes, halved to 2×2 before its transformer."""
    config = {
        "hidden_size": 32, "cond_embed_dim": 10, "micro_cond_encode_dim": 8, "micro_cond_embed_dim": 40,
        "encoder_hidden_size": 16, "vocab_size": MASK_ID + 1, "codebook_size": NUM_CODES, "in_channels": 20,
        "block_out_channels": 24, "num_res_blocks": 2, "downsample": True, "upsample": True,
        "block_num_heads": 2, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "sample_size": 4,
    }  # fmt: skip
    return randomised(UVit2DModel(**config | changes))


def tokenizer() -> VQModel:
    """Return a tokenizer of 8×8 pixels."""
    return randomised(
        VQModel(
            block_out_channels=(8, 16), down_block_types=2 * ("DownEncoderBlock2D",),
            up_block_types=2 * ("UpDecoderBlock2D",), layers_per_block=1, latent_channels=6,
            num_vq_embeddings=NUM_CODES, norm_num_groups=4, mid_block_add_attention=False,
            lookup_from_codebook=True,
        )
    )  # fmt: skip


def randomised(model):
    """Return a model with weights that any machine draws alike."""
    model.load_state_dict(weights({name: tuple(each.shape) for name, each in model.state_dict().items()}))
    return model.eval().requires_grad_(False)


def publish(folder: Path, **changes) -> Path:
    """Write the pipeline; ``changes`` are of its transformer's configuration."""
    transformer(**changes).save_pretrained(folder / "transformer")
    tokenizer().save_pretrained(folder / "vqvae")
    AmusedScheduler(mask_token_id=MASK_ID).save_pretrained(folder / "scheduler")
    write_words(folder / "tokenizer")
    encoder = folder / "text_encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text(json.dumps(TEXT))
    save_file(small("amused")[0], encoder / "model.safetensors")
    write_index(folder)
    return folder


def write_words(folder: Path) -> None:
    """Write CLIP's form of words: every byte, alone and at a word's end, then what pairs of them make."""
    folder.mkdir()
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [merge.replace(" ", "") for merge in MERGES if merge.replace(" ", "") not in words]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    said = {"model_max_length": 12, "pad_token": "!", "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def write_index(folder: Path) -> None:
    """Write ``model_index.json``."""
    diffusers = {"transformer": "UVit2DModel", "vqvae": "VQModel", "scheduler": "AmusedScheduler"}
    transformers = {"text_encoder": "CLIPTextModelWithProjection", "tokenizer": "CLIPTokenizer"}
    index = {
        "_class_name": "AmusedPipeline",
        **{part: ["diffusers", name] for part, name in diffusers.items()},
        **{part: ["transformers", name] for part, name in transformers.items()},
    }
    (folder / "model_index.json").write_text(json.dumps(index))
