"""What files say of themselves."""

import json
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from models.media.image import IMAGE, ImageSpec
from models.media.provenance import Provenance

GENERATED = Provenance("trainedAlgorithmicMedia", 'one & "two" <three>', "0123456789abcdef", 2**53 - 1, 3)
DECODED = Provenance("compositeWithTrainedAlgorithmicMedia", "tiny", "0123456789abcdef")
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"


def test_a_packet_is_xml_whatever_a_pipeline_is_called() -> None:
    (description,) = ElementTree.fromstring(GENERATED.xmp()).iter(
        "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
    )
    assert description.attrib[SOURCE_TYPE].endswith("/digitalsourcetype/trainedAlgorithmicMedia")
    assert description.attrib["{https://github.com/smalti/smalti/ns/1.0/}pipeline"] == GENERATED.pipeline


@pytest.mark.parametrize("format", list(IMAGE.formats))
@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_with_a_packet_has_the_same_pixels_and_the_same_bytes_each_time(format, channels) -> None:
    pixels = PIXELS[:, :, :channels]
    plain = IMAGE.save(pixels, format)
    told = IMAGE.save(pixels, format, provenance=GENERATED)
    assert told == IMAGE.save(pixels, format, provenance=GENERATED)
    assert GENERATED.xmp().encode() in told
    assert b"DigitalSourceType" not in plain
    spec = ImageSpec(width_px=7, height_px=9, channels=channels)
    assert np.array_equal(IMAGE.load(told, spec), IMAGE.load(plain, spec))


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="needs exiftool, of libimage-exiftool-perl")
@pytest.mark.parametrize("background", ["white", "transparent"])
def test_exiftool_reads_it_back_from_every_format(tmp_path: Path, background: str) -> None:
    formats = ("png", "webp") if background == "transparent" else tuple(IMAGE.formats)
    for number, provenance in enumerate((GENERATED, DECODED)):
        for format in formats:
            file = IMAGE.save(PIXELS, format, background=background, provenance=provenance)
            (tmp_path / f"{number}.{format}").write_bytes(file)
    command = ["exiftool", "-json", "-XMP:all", *sorted(map(str, tmp_path.iterdir()))]
    said = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert len(said) == 2 * len(formats)
    for each in said:
        provenance = GENERATED if Path(each["SourceFile"]).name.startswith("0") else DECODED
        assert each["DigitalSourceType"].endswith(f"/{provenance.source_type}")
        assert each["Pipeline"] == provenance.pipeline
        assert each["Tokenizer"] == provenance.tokenizer
        numbers = [each.get(name) and int(each[name]) for name in ("Seed", "Sample")]
        assert numbers == [provenance.seed, provenance.sample]
        assert each["CreatorTool"].startswith("Smalti ")
