"""The VQ tokenizers of LlamaGen: ``vq_ds16_c2i``, ``vq_ds8_c2i`` (Sun et al. 2024, arXiv:2406.06525).

Their names are CompVis' with levels called ``conv_blocks``, in the decoder from the coarsest. Latents and
codebook are brought to length 1.
"""

import re
from collections.abc import Mapping

from models.autoencoders.vqgan import VqganConfig
from models.importers.base import Imported, Source
from models.importers.compvis import infer_config, made, size_of
from models.importers.keys import without
from models.importers.ldm_names import compvis_name
from models.importers.vq_parts import finish, read_image_size_px

_CODEBOOK = "quantize.embedding.weight"
_USAGE = "quantize.codebook_used"
_MIDDLE = {"mid.0.": "mid.block_1.", "mid.1.": "mid.attn_1.", "mid.2.": "mid.block_2."}


def recognises(source: Source) -> bool:
    """Whether there is a codebook beside networks with these names."""
    return {"encoder.conv_blocks.0.res.0.conv1.weight", _CODEBOOK} <= source.tensors.keys()


def read(source: Source, settings: Mapping[str, str]) -> Imported:
    """Return the tokenizer.

    settings: ``image_size_px``, 256 where it is left out.

    Raises: ImportFailed.
    """
    tensors = without(source.tensors, _USAGE)
    num_levels = len({name.split(".")[2] for name in tensors if name.startswith("encoder.conv_blocks.")})
    network = infer_config({_compvis(name, num_levels): tensor for name, tensor in tensors.items()})
    size_px, notes = read_image_size_px(settings, None)
    config = made(
        VqganConfig,
        network=network,
        image_size_px=size_px,
        codebook_size=size_of(tensors, _CODEBOOK, 0),
        code_channels=size_of(tensors, _CODEBOOK, 1),
        lookup="cosine",
    )

    def their_name(name: str) -> str:
        part, _, rest = name.partition(".")
        match part:
            case "quantizer":
                return _CODEBOOK
            case "to_codes":
                return f"quant_conv.{rest}"
            case "from_codes":
                return f"post_quant_conv.{rest}"
            case _:
                return _llamagen(compvis_name(name, network), num_levels)

    return finish(config, tensors, their_name, notes)


def _compvis(name: str, num_levels: int) -> str:
    """Return CompVis' name for LlamaGen's."""
    for theirs, compvis in _MIDDLE.items():
        name = name.replace(theirs, compvis)
    name = re.sub(r"^encoder\.conv_blocks\.", "encoder.down.", name)
    name = re.sub(
        r"^decoder\.conv_blocks\.(\d+)", lambda found: f"decoder.up.{num_levels - 1 - int(found[1])}", name
    )
    return name.replace(".res.", ".block.")


def _llamagen(name: str, num_levels: int) -> str:
    """Return LlamaGen's name for CompVis'."""
    for theirs, compvis in _MIDDLE.items():
        name = name.replace(compvis, theirs)
    name = name.replace("encoder.down.", "encoder.conv_blocks.").replace(".block.", ".res.")
    return re.sub(
        r"^decoder\.up\.(\d+)", lambda found: f"decoder.conv_blocks.{num_levels - 1 - int(found[1])}", name
    )
