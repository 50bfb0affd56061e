"""PyTorch's own layers, in eager mode with its own Adam: the interface of `programs.JaxProgram`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import Unavailable
from benchmarks.problem import Batch, Row, Tree, Weights, no_masks


class TorchProgram:
    """`torch.nn.RNN`, `LSTM` or `GRU` with a linear head, on the GPU where JAX runs on one: there it is cuDNN's."""

    compile_seconds = temporary_bytes = None
    without = ()

    def __init__(self, row: Row, dtype: Any, weights: Weights, batches: Batch, rate: float, decay: tuple[float, float]):
        """Build the module."""
        import torch  # pyright: ignore[reportMissingImports]

        if row.condition == "dropout":
            raise Unavailable("PyTorch has no recurrent dropout")
        gpu = jax.default_backend() == "gpu"
        if gpu and not torch.cuda.is_available():
            raise Unavailable("this PyTorch has no CUDA")
        device, kind = "cuda" if gpu else "cpu", getattr(torch, jnp.dtype(dtype).name)
        self.row, self.form, self.torch = row, row.cell, torch
        layer = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[row.cell]
        self.rnn: Any = layer(row.shape.features, row.shape.hidden, batch_first=True)
        self.head: Any = torch.nn.Linear(row.shape.hidden, 1)
        self.model: Any = torch.nn.ModuleDict({"rnn": self.rnn, "head": self.head})
        placed = jax.tree.map(lambda w: torch.tensor(np.asarray(w, np.float32)), self.place(weights))
        self.model.load_state_dict(placed)
        self.model.to(device=device, dtype=kind)
        self.optimizer = torch.optim.Adam(self.model.parameters(), rate, decay)
        self.x = torch.tensor(np.asarray(batches.x[0], np.float32)).to(device, kind)
        self.y = torch.tensor(np.asarray(batches.y[0])).to(device)
        self.lengths: Any = None  # torch wants them on the CPU
        if batches.lengths is not None:
            self.lengths = torch.tensor(np.asarray(batches.lengths[0]), dtype=torch.int64)

    def compile(self) -> None:
        """Nothing is compiled."""

    def place(self, w: Weights) -> Tree:
        """Weights by torch's names. Of its two biases, which add up, the second is 0 except inside the reset."""
        zeros = jnp.zeros_like(w["b"])
        inner = jnp.concatenate([zeros[: 2 * len(w["b_n"])], w["b_n"]]) if self.row.cell == "gru" else zeros
        return {
            "rnn.weight_ih_l0": w["w_x"].T,
            "rnn.weight_hh_l0": w["w_h"].T,
            "rnn.bias_ih_l0": w["b"],
            "rnn.bias_hh_l0": inner,
            "head.weight": w["w_y"].T,
            "head.bias": w["b_y"],
        }

    def masks(self):
        """Nothing is dropped."""
        return no_masks(self.row)

    def _last(self) -> Any:
        if self.lengths is None:
            return self.rnn(self.x)[0][:, -1]
        pack = self.torch.nn.utils.rnn.pack_padded_sequence
        last = self.rnn(pack(self.x, self.lengths, batch_first=True, enforce_sorted=False))[1]
        return last[0][0] if self.row.cell == "lstm" else last[0]

    def run(self, calls: int) -> np.ndarray:
        """Take several steps, wait, and return the loss [1] of the last one."""
        loss: Any = None
        for _ in range(calls):
            self.optimizer.zero_grad()
            loss = ((self.head(self._last()).float() - self.y) ** 2).mean()
            loss.backward()
            self.optimizer.step()
        if self.x.is_cuda:
            self.torch.cuda.synchronize()
        return np.ravel(loss.item())

    def moment(self) -> Tree:
        """Adam's running mean of the gradients."""
        means = {name: self.optimizer.state[p]["exp_avg"] for name, p in self.model.named_parameters()}
        return {name: jnp.asarray(mean.float().cpu().numpy()) for name, mean in means.items()}

    def compile_inference(self) -> None:
        """Nothing is compiled."""

    def infer(self, calls: int) -> None:
        """Call the layer several times in a row, and wait."""
        with self.torch.no_grad():
            for _ in range(calls):
                self._last()
        if self.x.is_cuda:
            self.torch.cuda.synchronize()
