"""The networks alone: one call of a prior, and a tokenizer that encodes."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from compute import flops_per_row
from figures import SHIPPED, Bench, Figure
from torch import Tensor
from untrained import (
    EMOJI_TOKENIZER,
    F16_TOKENIZER,
    SMALL_PRIOR,
    SMALL_TOKENIZER,
    WIDE_PRIOR,
    draw_zeros,
    untrained_pipeline,
)

from models.autoencoders.vq import Tokenizer, channels_last
from models.networks.dit import DiT
from models.pipeline import Pipeline
from models.priors.flow import FlowPrior

# --- one call ----------------------------------------------------------------------------------------------


def calls(bench: Bench) -> Iterator[Figure]:
    if bench.is_small:
        networks = {"small": untrained_pipeline(SMALL_TOKENIZER, SMALL_PRIOR, str(bench.device)).prior}
        aims: dict[int, float | None] = {2: None, 8: 0.35}
    else:
        networks = {
            "34 M": untrained_pipeline(EMOJI_TOKENIZER, WIDE_PRIOR, str(bench.device)).prior,
            "5.5 M": Pipeline.load(SHIPPED, device=str(bench.device)).prior,
        }
        aims = {2: None, 64: 0.35, 1024: 0.40}
    for name, prior in networks.items():
        assert isinstance(prior, FlowPrior)
        flops = flops_per_row(prior)
        compiled = DiT(prior.network.config).to(bench.device, torch.bfloat16).eval()
        compiled.load_state_dict(prior.network.state_dict())
        for block in compiled.blocks:
            block.compile(dynamic=False)
        for rows, aimed in aims.items():
            ways = {"as it is": call_of(prior.network, rows, bench.device)}
            if bench.device.type == "cuda":
                ways["in a CUDA graph"] = graph_of(ways["as it is"])
                ways["compiled, in a CUDA graph"] = graph_of(call_of(compiled, rows, bench.device))
            for way, call in ways.items():
                seconds = bench.median_s(call, num_calls=10)
                share = rows * flops / seconds / bench.matrix_rate
                wanted = aimed if name == "34 M" and way.startswith("compiled") else None
                yield Figure(
                    f"{name}: one call, {rows} rows, {way}", 1000 * seconds, "ms", None, share, wanted
                )


def call_of(network: DiT, num_rows: int, device: torch.device) -> Callable[[], Tensor]:
    """Return a call of a prior over rows that stay where they are."""
    x = torch.randn(num_rows, network.config.latent_channels, *network.config.grid, device=device)
    t = torch.linspace(0, 1, num_rows, device=device)
    conditions = network.null_conditions(num_rows).clone()

    def call() -> Tensor:
        with torch.inference_mode():
            return network(x, t, conditions)

    return call


def graph_of(call: Callable[[], Tensor]) -> Callable[[], None]:
    """Return the replay of a call, captured as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return functools.partial(_replay, graph, call)


def _replay(graph: torch.cuda.CUDAGraph, call: Callable[[], Tensor]) -> None:
    """Replay a graph of ``call``, which holds the tensors that it reads."""
    graph.replay()


# --- encoding ----------------------------------------------------------------------------------------------


@torch.inference_mode()
def encode(bench: Bench) -> Iterator[Figure]:
    num_images = 4 if bench.is_small else 64
    generator = torch.Generator().manual_seed(0)
    tokenizer = Tokenizer(SMALL_TOKENIZER if bench.is_small else F16_TOKENIZER)
    draw_zeros(tokenizer.parameters())
    tokenizer = channels_last(tokenizer.to(bench.device)).eval()
    shape = (num_images, *tokenizer.signal_shape)
    images = torch.rand(shape, generator=generator).mul(2).sub(1).to(bench.device)
    images = images.contiguous(memory_format=torch.channels_last)
    vectors = tokenizer.encoder(images).float().movedim(1, -1).flatten(0, -2)
    entries = torch.randint(len(vectors), (tokenizer.config.codebook_size,), generator=generator)
    tokenizer.quantizer.codebook.copy_(vectors[entries.to(bench.device)])  # as near as a trained one's
    eager, compiled = tokenizer.encoder, torch.compile(tokenizer.encoder, dynamic=False)
    wanted: Tensor | None = None
    ways = {"float32": (eager, False, None), "TF32": (eager, True, 3000.0)}
    if not bench.is_small:
        ways["TF32, compiled"] = (compiled, True, 6000.0)
    for way, (encoder, allows_tf32, aim) in ways.items():

        def codes(encoder: Callable[[Tensor], Tensor] = encoder) -> Tensor:
            return tokenizer.quantizer.quantize(tokenizer.quantizer.squash(encoder(images))).codes

        with tf32(allows_tf32):
            found = codes()
            wanted = found if wanted is None else wanted
            seconds = bench.median_s(codes)
        yield Figure(f"f16, 256 px: encode in {way}", num_images / seconds, "images/s", aim)
        if aim is not None:
            equal = (found == wanted).float().mean().item()
            yield Figure(f"f16, 256 px: codes equal in {way}", 100 * equal, "%", 99.9)


@contextmanager
def tf32(is_allowed: bool) -> Iterator[None]:
    """Let convolutions use TF32, or nothing use it."""
    torch.backends.cuda.matmul.allow_tf32 = False
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, is_allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
