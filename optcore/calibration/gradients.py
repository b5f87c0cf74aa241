"""How much the model's prediction moves with the output of each linear layer, measured in the memory of one layer.

For small changes of a linear layer's outputs y, the KL divergence of the changed model from the original is half a
quadratic form in the change. Its matrix is the Fisher information: the mean of g g^T, where g is the gradient with
respect to y of -log p(label), for labels drawn from the model's own prediction (Amari, "Natural gradient works
efficiently in learning", 1998; Martens, arXiv:1412.1193, section 5). We keep its diagonal by output channel: E[g_n^2],
and the same with the correlation between the tokens of a window.

Any random gradient of the logits with the covariance diag(p) - p p^T gives the same mean as drawn labels. We take
sqrt(p) * e - p * sum(sqrt(p) * e) with random signs e, which spreads less from one seed to the next: where the model is
sure of the next word, a drawn label is nearly always that word and says nothing. The text's own next words, which other
tools take, overestimate the divergence by the model's own error; they rank layers alike.

The forward pass streams the layers and keeps the hidden states between them, on disk when they are large. The backward
pass visits the layers in reverse: load one, run it again on its saved input, go back from the gradient of its output.
"""

from pathlib import Path

import torch
from torch import nn

from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import linears
from optcore.streaming.hidden import HiddenStates, IN_MEMORY_bytes, allocate

_LOGITS_tokens = 1024


class OutputGradient:
    """Squares of one linear layer's output gradient, of -log p summed over a window's tokens."""

    def __init__(self) -> None:
        self.tokens = 0
        """Tokens that reached it: an expert gets few of all."""
        self._squares_N: torch.Tensor | None = None
        self._coherent_N: torch.Tensor | None = None
        self._inputs = 0.0

    def add(self, gradient: torch.Tensor, given: torch.Tensor) -> None:
        """Take in the gradients [..., N] and inputs [..., K] of a batch; windows are the first of three dimensions."""
        gradient_STN, given_STK = (x.detach().float().reshape(-1, *x.shape[-2:]) for x in (gradient, given))
        if self._squares_N is None:
            self._squares_N = gradient_STN.new_zeros(gradient_STN.shape[-1])
            self._coherent_N = torch.zeros_like(self._squares_N)
        self.tokens += gradient_STN[..., 0].numel()
        self._squares_N += gradient_STN.square().sum((0, 1))
        self._inputs += float(given_STK.square().sum())
        for gradient_TN, given_TK in zip(gradient_STN, given_STK, strict=True):
            self._coherent_N += (gradient_TN.T @ given_TK).square().sum(1)

    def mean_square(self) -> torch.Tensor | None:
        """E[g_n^2] over its tokens, float32 [N]; None without a token."""
        return None if self._squares_N is None else self._squares_N / self.tokens

    def coherent_square(self) -> torch.Tensor | None:
        """sum over windows of |sum_t g_tn x_t|^2 / sum_t |x_t|^2, float32 [N]; None without a token.

        The same as `mean_square` where tokens are independent. A rounded weight errs alike on alike inputs, so that the
        errors of a window's tokens add up, or cancel: this is what a white change of the weight moves on average.
        """
        return None if self._coherent_N is None else self._coherent_N / max(self._inputs, 1e-30)


class BackwardPass:
    """Gradients of a set of windows, from the last layer to the first.

    passed = BackwardPass(decoder, tokens_ST, scratch, seed)
    for index in reversed(range(len(decoder))):
        with decoder.layer(index) as layer:
            gradients = passed.step(index, layer)
    """

    def __init__(
        self,
        decoder: Decoder,
        tokens_ST: torch.Tensor,
        scratch: Path,
        seed: int,
        in_memory_bytes: int = IN_MEMORY_bytes,
    ) -> None:
        self.decoder = decoder
        self.tokens = tokens_ST.numel()
        self._states = HiddenStates(decoder, tokens_ST, scratch, in_memory_bytes)
        first_STH = self._states.hidden_STH
        # The input of each layer, and the output of the last. A step needs its input once and then writes the gradient
        # of that input over it, where the layer below finds it.
        shape = (len(decoder) + 1, *first_STH.shape)
        self._slots_LSTH = allocate(shape, first_STH.dtype, scratch, in_memory_bytes)
        self._forward()
        self._head(torch.Generator(decoder.device).manual_seed(seed))

    def step(self, index: int, layer: nn.Module) -> dict[str, OutputGradient]:
        """Go back through a loaded layer; the gradients of its linear layers by their path in it."""
        found = {path: OutputGradient() for path in linears(layer)}
        handles = [layer.get_submodule(path).register_forward_hook(_watch(one)) for path, one in found.items()]
        try:
            for rows, state in self._states.states():
                given_BTH = self._slot(index, rows).requires_grad_()
                out = self.decoder.forward(index, layer, state._replace(hidden_BTH=given_BTH)).hidden_BTH
                (gradient_BTH,) = torch.autograd.grad(out, given_BTH, self._slot(index + 1, rows))
                self._slots_LSTH[index, rows] = gradient_BTH.cpu()
        finally:
            for handle in handles:
                handle.remove()
        return found

    def _slot(self, index: int, rows: slice) -> torch.Tensor:
        return self._slots_LSTH[index, rows].to(self.decoder.device)

    def _forward(self) -> None:
        self._slots_LSTH[0] = self._states.hidden_STH
        for index in range(len(self.decoder)):
            with self.decoder.layer(index) as layer:
                self._states.advance(index, layer)
            self._slots_LSTH[index + 1] = self._states.hidden_STH

    def _head(self, generator: torch.Generator) -> None:
        """Through the head and the final norm, a few positions at a time: logits outweigh hidden states."""
        for rows, state in self._states.states():
            windows, length, _ = state.hidden_BTH.shape
            size = length if self.decoder.is_classifier else max(1, _LOGITS_tokens // windows)
            for start in range(0, length, size):
                part = slice(start, start + size)
                given_BTH = state.hidden_BTH[:, part].detach().requires_grad_()
                logits_BTV = self.decoder.logits(state._replace(hidden_BTH=given_BTH))
                (gradient_BTH,) = torch.autograd.grad(logits_BTV, given_BTH, logit_gradient(logits_BTV, generator))
                self._slots_LSTH[-1, rows, part] = gradient_BTH.cpu()


@torch.no_grad()
def logit_gradient(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random gradient of logits [..., V] with mean 0 and covariance diag(p) - p p^T, that of -log p(drawn label)."""
    p = torch.softmax(logits.float(), -1)
    signs = torch.randint(0, 2, p.shape, generator=generator, device=p.device, dtype=torch.int8) * 2 - 1
    root = p.sqrt() * signs
    return (root - p * root.sum(-1, keepdim=True)).to(logits.dtype)


def _watch(found: OutputGradient):  # type: ignore[no-untyped-def]  # torch's hooks have no type
    def hook(module: nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        out.register_hook(lambda gradient: found.add(gradient, given[0]))

    return hook
