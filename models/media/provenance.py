"""What an output says of itself: that it was generated, and by what. Without torch.

Nothing in it changes from run to run, so that the same request keeps the same bytes.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Literal
from xml.sax.saxutils import quoteattr

SourceType = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]

_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_NAMESPACES = {
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "smalti": "https://github.com/smalti/smalti/ns/1.0/",
}


@dataclass(frozen=True)
class Provenance:
    """Where an output comes from.

    source_type: IPTC's term, https://cv.iptc.org/newscodes/digitalsourcetype/: trained where a prior made
    it, composite where it is a decoding of what came in, or an edit of it. tokenizer: its fingerprint. seed:
    None where nothing was sampled; ``sample`` is the output's number under it.
    """

    source_type: SourceType
    pipeline: str
    tokenizer: str | None = None
    seed: int | None = None
    sample: int | None = None

    def xmp(self) -> str:
        """Return an XMP packet (ISO 16684-1), as picture files carry it."""
        said = {
            "Iptc4xmpExt:DigitalSourceType": _SOURCE_TYPES + self.source_type,
            "xmp:CreatorTool": f"Smalti {_version()}",
            "smalti:pipeline": self.pipeline,
            "smalti:tokenizer": self.tokenizer,
            "smalti:seed": self.seed,
            "smalti:sample": self.sample,
        }
        spaces = "".join(f" xmlns:{name}={quoteattr(uri)}" for name, uri in _NAMESPACES.items())
        fields = "".join(f" {name}={quoteattr(str(each))}" for name, each in said.items() if each is not None)
        return (
            '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
            '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
            '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            f'<rdf:Description rdf:about=""{spaces}{fields}/>'
            '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
        )


@cache
def _version() -> str:
    try:
        return version("smalti")
    except PackageNotFoundError:  # run from its source
        return "unknown"
