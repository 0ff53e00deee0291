"""The kinds of models by name. A module is imported when a pipeline of its kind is loaded.

A new kind is one file and one line here; ``docs/adding-a-model.md`` walks through it.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from models.options import ConfigError

AUTOENCODERS = {
    "vq": "models.autoencoders.vq:Tokenizer",
    "vae": "models.autoencoders.vae:VariationalAutoencoder",
    "vqgan": "models.autoencoders.vqgan:Vqgan",
    "kl": "models.autoencoders.kl:KlAutoencoder",
    "tiny": "models.autoencoders.tiny:TinyAutoencoder",
}
PRIORS = {
    "flow": "models.priors.flow:FlowPrior",
    "autoregressive": "models.priors.autoregressive:AutoregressivePrior",
    "masked": "models.priors.masked:MaskedPrior",
    "llamagen": "models.priors.llamagen:LlamaGenPrior",
    "amused": "models.priors.amused:AmusedPrior",
    "dit": "models.priors.class_prior:ClassPrior",
    "sit": "models.priors.class_prior:ClassPrior",
}
IMPORTERS = {  # a public format → the module that reads it; the first that knows one does
    "amused": "models.importers.amused",  # priors before a pipeline's other parts
    "diffusers-dit": "models.importers.diffusers_dit",
    "dit": "models.importers.facebook_dit",
    "lightningdit": "models.importers.lightning_dit",
    "sit": "models.importers.sit",
    "compvis-kl": "models.importers.compvis_kl",
    "compvis-vq": "models.importers.compvis_vq",
    "diffusers-kl": "models.importers.diffusers_kl",
    "diffusers-vq": "models.importers.diffusers_vq",
    "llamagen": "models.importers.llamagen_gpt",
    "llamagen-vq": "models.importers.llamagen_vq",
    "maskgit-vqgan": "models.importers.maskgit_vqgan",
    "open-magvit2": "models.importers.open_magvit2",
    "tiny": "models.importers.tiny",
}
EXPORTERS = {  # a format → a kind above → "module:function"
    "diffusers": {
        "kl": "models.exporters.kl:write_autoencoder_kl",
        "vq": "models.exporters.vq:write_vqmodel",
        "vqgan": "models.exporters.vq:write_vqmodel",
        "dit": "models.exporters.dit:write_dit",
        "sit": "models.exporters.dit:write_dit",
    },
}


def load_kind(kinds: Mapping[str, str], kind: str) -> Any:
    """Return the class of a kind.

    Raises: ConfigError naming the kinds there are.
    """
    if kind not in kinds:
        raise ConfigError(f"there is no kind {kind!r}; known are {', '.join(kinds)}")
    module, _, name = kinds[kind].partition(":")
    return getattr(import_module(module), name)
