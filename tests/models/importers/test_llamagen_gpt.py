"""LlamaGen's priors over classes, imported: what their authors' own code computed once, computed again."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.autoencoders.vq import Tokenizer
from models.checkpoint import save_checkpoint
from models.conditioning import Conditions
from models.importers.base import ImportFailed, Source
from models.importers.building import _with_grey
from models.importers.formats import read_source
from models.importers.importing import ImportRequest, import_checkpoint
from models.networks.llamagen import LlamaGen, LlamaGenConfig
from models.options import AutoregressiveOptions, FlowOptions
from models.pipeline import Pipeline
from models.priors.code_draws import least_kept
from models.priors.llamagen import LlamaGenPrior
from models.stage import Sample, SampleSpec, run_path
from tests.models.importers.published import full_size, small, weights
from tests.tiny import TOKENIZER

SETTINGS = {"num_heads": "2", "image_size_px": "8", "downsample_factor": "2", "code_channels": "4"}


def read(tensors, settings=SETTINGS, name="c2i_S.pt"):
    (imported,), format_name = read_source(Source(Path(name), tensors), settings)
    assert format_name == "llamagen"
    return imported


@pytest.fixture
def prior(tmp_path: Path) -> LlamaGenPrior:
    imported = read(small("llamagen-gpt")[0])
    save_checkpoint(tmp_path / "prior.safetensors", dict(imported.tensors), imported.config)
    loaded = LlamaGenPrior.load(tmp_path / "prior.safetensors")
    loaded.network.eval().requires_grad_(False)
    return loaded


@torch.inference_mode()
def test_the_network_computes_what_the_authors_code_does(prior) -> None:
    """Within 1e-5 of logits of about 1, in float32: only the order of sums differs. One is of no class."""
    theirs = small("llamagen-gpt")[1]
    network, codes, rows = prior.network, theirs["codes"].long(), torch.tensor([3, 0, 1])
    cache = network.make_cache(4)
    for row, label in zip(rows.tolist(), theirs["labels"], strict=True):
        cache.begin(row, network.prefix(Conditions(label.view(1, 1))))
    before, found = torch.full((3,), network.no_code), []
    for position in range(16):
        found.append(network.decode(before, torch.full((3,), position), rows, cache))
        before = codes[:, position]
    assert theirs["logits"].std() > 0.5
    torch.testing.assert_close(torch.stack(found, dim=1), theirs["logits"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("run", "scale"), [("greedy", 1.0), ("guided", 3.0)])
def test_the_likeliest_codes_are_the_authors(prior, run: str, scale: float) -> None:
    theirs = small("llamagen-gpt")[1][run].long().view(2, 4, 4)
    options = AutoregressiveOptions(temperature=0.0, guidance_scale=scale)
    samples = [
        Sample(SampleSpec(0, options, Conditions(torch.tensor([[label]])), prior.null_conditions()), index)
        for index, label in enumerate((1, 4))
    ]
    run_path([prior.make_stage(2)], samples)
    assert torch.equal(torch.stack([sample.value for sample in samples]), theirs)


def test_the_codes_that_are_drawn_from_are_the_authors() -> None:
    """Their top_k of 20 and then their top_p of 0.7, at a temperature of 0.8."""
    theirs = small("llamagen-gpt")[1]
    shares = (theirs["logits"][:, 5] / 0.8).softmax(-1)
    least = least_kept(shares, torch.full((3,), 20), torch.full((3,), 0.7), torch.zeros(3))
    assert torch.equal(shares >= least, theirs["kept"])


@pytest.mark.parametrize(
    ("name", "count", "shape"),
    [
        ("b", 88, (12, 768, 2048)),
        ("l", 172, (24, 1024, 2816)),
        ("xl", 256, (36, 1280, 3584)),
        ("xxl", 340, (48, 1536, 4096)),
        ("3b", 172, (24, 3200, 8704)),
    ],
)
def test_a_full_size_has_every_published_name_and_shape(name: str, count: int, shape: tuple) -> None:
    """On the meta device: none missing, none left over."""
    tensors = full_size(f"llamagen-c2i-{name}")
    assert len(tensors) == count
    tensors["freqs_cis"] = torch.zeros(577, 32, 2)  # which some files hold
    imported = read(tensors, {}, f"c2i_{name.upper()}_384.pt")
    network = imported.config
    assert (network.depth, network.hidden_size, network.mlp_size) == shape
    assert (network.grid, network.codebook_size, network.latent_channels) == ((24, 24), 16384, 8)
    with torch.device("meta"):
        assert set(imported.tensors) == set(LlamaGen(network).state_dict())
    assert imported.labels["class"][207] == "golden retriever"
    assert imported.defaults == AutoregressiveOptions(guidance_scale=4.0, top_k=2000)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (
            lambda t: t.pop("layers.1.attention.wo.weight"),
            {},
            r"1 missing \(layers\.1\.attention\.wo\.weight",
        ),
        (
            lambda t: t.pop("layers.0.feed_forward.w3.weight"),
            {},
            r"feed_forward\.w1\.weight \(160, 56\), exp",
        ),
        (lambda t: t.update(extra=torch.zeros(3)), {}, r"1 left over \(extra \(3,\)\)"),
        (
            lambda t: t.update({"layers.0.attention.wqkv.weight": torch.zeros(112, 56)}),
            {},
            r"fewer heads of keys than of queries are not known here",
        ),
        (lambda t: None, {"num_heads": "0"}, r"num_heads must be a whole number from 1, got '0'"),
        (lambda t: None, {"num_heads": "3"}, r"hidden_size must give each of num_heads 3 heads a multiple"),
        (lambda t: None, {"image_size_px": "9"}, r"must be a multiple of downsample_factor 2, got 9"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, settings, message) -> None:
    tensors, _ = small("llamagen-gpt")
    change(tensors)
    with pytest.raises(ImportFailed, match=message):
        read(tensors, SETTINGS | settings)


def test_what_tensors_do_not_tell_has_to_be_said() -> None:
    tensors, _ = small("llamagen-gpt")
    with pytest.raises(ImportFailed, match=r"the size of the pictures.*--set image_size_px=256"):
        read(tensors, {})
    with pytest.raises(ImportFailed, match=r"no published network has 56 channels.*--set num_heads="):
        read(tensors, {"image_size_px": "256"})


def test_the_prior_for_texts_is_known_and_refused_with_the_reason() -> None:
    tensors, _ = small("llamagen-gpt")
    del tensors["cls_embedding.embedding_table.weight"]
    tensors["cls_embedding.cap_proj.fc1.weight"] = torch.zeros(56, 2048)
    with pytest.raises(ImportFailed, match=r"prior for texts \(t2i\).*Flan-T5 XL\) of 2,048 channels"):
        read(tensors)


def tokenizer_file(folder: Path, num_codes: int) -> Path:
    """Write a small tokenizer of LlamaGen's, whose pictures have 2×2 pixels a code."""
    tensors, _ = small("llamagen")
    tensors["quantize.embedding.weight"] = weights({"codebook": [num_codes, 4]})["codebook"]
    save_file(tensors, folder / f"vq-{num_codes}.safetensors")
    return folder / f"vq-{num_codes}.safetensors"


def take_over(source: Path, out: Path, **more) -> None:
    import_checkpoint(ImportRequest(str(source), out, **more), lambda _: None)


def generate(pipeline: Pipeline, *indices: int) -> list[torch.Tensor]:
    """Return samples of one request, guided in part, from calls of one shape."""
    stage = pipeline.make_stages(4).sample
    stage.fixed_rows = (8,)
    null = pipeline.conditions()
    samples = []
    for index in indices:
        options = AutoregressiveOptions(guidance_scale=1.0 + index, top_k=50)
        spec = SampleSpec(3, options, pipeline.conditions({"class": index}), null)
        samples.append(Sample(spec, index))
    run_path([stage], samples)
    return [sample.value for sample in samples]


def test_with_its_tokenizer_it_is_a_pipeline_whose_codes_depend_on_no_neighbour(tmp_path: Path) -> None:
    source, out = tmp_path / "c2i_S.safetensors", tmp_path / "weights"
    save_file(small("llamagen-gpt")[0], source)
    take_over(tokenizer_file(tmp_path, 200), out / "vq", settings={"image_size_px": "32"})
    take_over(source, out / "c2i", settings=SETTINGS, autoencoder="vq")
    pipeline = Pipeline.load(out / "c2i")
    assert (pipeline.spec.medium.width_px, pipeline.spec.codes.grid) == (8, (4, 4))
    assert pipeline.spec.labels == {"class": ("0", "1", "2", "3", "4")}
    together = generate(pipeline, 0, 1, 2)
    alone = [generate(pipeline, index)[0] for index in (0, 1, 2)]
    assert all(torch.equal(ours, wanted) for ours, wanted in zip(together, alone, strict=True))
    assert not torch.equal(together[0], together[1])
    assert pipeline.generate(pipeline.conditions({"class": 2}), seed=3).shape == (1, 3, 8, 8)


def test_a_tokenizer_of_other_codes_is_refused(tmp_path: Path) -> None:
    source, out = tmp_path / "c2i_S.safetensors", tmp_path / "weights"
    save_file(small("llamagen-gpt")[0], source)
    take_over(tokenizer_file(tmp_path, 100), out / "vq", settings={"image_size_px": "32"})
    with pytest.raises(ImportFailed, match=r"200 codes, the autoencoder has 1 codebook\(s\) of 100"):
        take_over(source, out / "c2i", settings=SETTINGS, autoencoder="vq")
    assert not (out / "c2i").exists()


def test_a_preview_is_grey_where_nothing_is_drawn_yet() -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(TOKENIZER).eval()
    tokenizer.quantizer.codebook.normal_()
    grey = tokenizer.quantize(tokenizer.encode(torch.zeros(1, 3, 16, 16))).codes
    config = _with_grey(LlamaGenConfig(codebook_size=32), tokenizer)
    assert (grey == config.common_code).sum() >= 8, "of 16"
    assert _with_grey(FlowOptions(), tokenizer) == FlowOptions()
