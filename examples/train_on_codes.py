"""Train a tiny prior on a folder of codes, in plain PyTorch: no Smalti, no pictures.

smalti encode pictures --out codes --pipeline emoji-64
python examples/train_on_codes.py codes

Each code is predicted from those before it, row by row over the grid: an autoregressive prior.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset


class Codes(Dataset[Tensor]):
    """All rows without an error, mapped into memory; the reader of docs/codes.md, for codes of 16 bits."""

    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        self.codebook_size: int = manifest["codebook_size"]
        self.parts = []
        for path in sorted(folder.glob("codes-*.parquet")):  # a shard is whole once this is there
            about = json.loads(path.with_suffix(".json").read_text())
            if "bits_per_code" in about:
                raise SystemExit(f"{folder} is packed: unpack it as docs/codes.md says")
            if about["shape"][0]:
                self.parts.append(
                    np.memmap(path.with_suffix(".bin"), about["dtype"], "r", shape=tuple(about["shape"]))
                )
        if not self.parts:
            raise SystemExit(f"{folder} has no codes: `smalti encode` makes some")
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.num_codes = int(np.prod(self.parts[0].shape[1:]))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Tensor:
        part = int(np.searchsorted(self.ends, index, side="right"))
        row = self.parts[part][index - self.ends[part]]
        return torch.from_numpy(row.reshape(-1).astype(np.int64))


class Prior(nn.Module):
    """A small causal transformer over the codes of a picture."""

    def __init__(self, codebook_size: int, num_codes: int, hidden_size: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.start = codebook_size  # a token before the first code
        self.embedding = nn.Embedding(codebook_size + 1, hidden_size)
        self.positions = nn.Parameter(0.02 * torch.randn(num_codes, hidden_size))
        layer = nn.TransformerEncoderLayer(
            hidden_size, 4, 4 * hidden_size, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(hidden_size, codebook_size)

    def loss(self, codes: Tensor) -> Tensor:
        """Return the mean cross entropy in nats of codes (B, N), each from those before it."""
        before = torch.cat([torch.full_like(codes[:, :1], self.start), codes[:, :-1]], 1)
        mask = nn.Transformer.generate_square_subsequent_mask(codes.shape[1])
        hidden = self.blocks(self.embedding(before) + self.positions, mask=mask, is_causal=True)  # (B, N, D)
        return cross_entropy(self.head(hidden).flatten(0, 1), codes.flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a tiny prior on a folder of codes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    codes = Codes(arguments.folder)
    prior = Prior(codes.codebook_size, codes.num_codes)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=3e-3)
    print(
        f"{len(codes)} rows of {codes.num_codes} codes, {np.log(codes.codebook_size):.2f} nats each by chance"
    )
    step = 0
    while step < arguments.steps:
        for batch in DataLoader(codes, arguments.batch_size, shuffle=True):
            loss = prior.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % max(1, arguments.steps // 5) == 0 or step == arguments.steps:
                print(f"step {step}: {loss.item():.2f} nats a code")
            if step == arguments.steps:
                break


if __name__ == "__main__":
    main()
