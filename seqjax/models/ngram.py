"""The language model to beat: interpolated Kneser-Ney, in NumPy."""

from typing import NamedTuple

import numpy as np

from seqjax.data.text import check_tokens

__all__ = ["KneserNey"]


class _Order(NamedTuple):
    """The n-grams of one length n in the text.

    Attributes:
      keys: int64 [K], sorted: (number of the first n - 1 words among the shorter n-grams) * V + last word.
      share: float64 [K], the discounted count over that of the context.
      left: float64 [contexts], what the discounts left to the shorter n-grams.
      seen: bool [contexts], whether anything followed.
    """

    keys: np.ndarray
    share: np.ndarray
    left: np.ndarray
    seen: np.ndarray


class KneserNey(NamedTuple):
    """Interpolated Kneser-Ney with three discounts an order (Chen & Goodman 1999, "modified Kneser-Ney").

        p(w | h) = (a(h w) - D(a(h w))) / sum_v a(h v)  +  left(h) * p(w | h'),     p(w | nothing) = 1 / V

    h' is h without its first word; a counts occurrences in the longest n-grams, and in shorter ones the different words
    before them. D(1), D(2) and D(3 and more) are estimated from how many n-grams have a count of 1, 2, 3, 4. After a
    context that does not occur, p(w | h) is p(w | h').

    Attributes:
      size: words of the vocabulary V.
      orders: of the n-grams of length 1, 2, ...

    Example:
      >>> import numpy as np
      >>> from seqjax.models import KneserNey
      >>> model = KneserNey.fit(np.array([0, 1, 2] * 50 + [1]), size=4, order=2)
      >>> (model.nats(np.array([0, 1, 2, 0, 1]))[1:] < 0.1).all(), model.nats(np.array([0, 3]))[1] > 3
      (np.True_, np.True_)
    """

    size: int
    orders: tuple[_Order, ...]

    @classmethod
    def fit(cls, tokens: np.ndarray, size: int, order: int) -> "KneserNey":
        """Count a text.

        Args:
          tokens: integers [N] in range(size).
          size: words of the vocabulary V.
          order: length of the longest n-grams; 1 is a unigram model.

        Raises:
          ValueError: for an order below 1, fewer tokens than an n-gram has, or a token outside of the vocabulary.
          TypeError: for tokens that are not integers.
        """
        tokens = check_tokens(tokens, size)
        if not 1 <= order <= len(tokens):
            raise ValueError(f"order must lie between 1 and the {len(tokens)} tokens, got {order}")
        # For each n, the number of the n-gram that ends at each place, from place n - 1 on.
        numbers, keys, counts = [np.zeros(len(tokens) + 1, np.int64)], [], []
        for n in range(1, order + 1):
            found, number, count = np.unique(
                numbers[-1][:-1] * size + tokens[n - 1 :], return_inverse=True, return_counts=True
            )
            keys.append(found)
            counts.append(count)
            numbers.append(number)
        for n in range(1, order):
            # One n-gram of length n + 1 is one word before the n-gram that it ends in.
            _, first = np.unique(numbers[n + 1], return_index=True)
            counts[n - 1] = np.bincount(numbers[n][1:][first], minlength=len(keys[n - 1]))
        contexts = [1, *map(len, keys)]
        return cls(size, tuple(_discounted(k, c, size, n) for k, c, n in zip(keys, counts, contexts, strict=False)))

    @property
    def ngrams(self) -> int:
        """The number of n-grams of all lengths."""
        return sum(len(order.keys) for order in self.orders)

    def nats(self, tokens: np.ndarray) -> np.ndarray:
        """`-log p` of each token after those before it, integers [N] to float64 [N].

        Raises:
          ValueError: for a token outside of the vocabulary.
          TypeError: for tokens that are no integers.
        """
        tokens = check_tokens(tokens, self.size)
        p = np.full(len(tokens), 1 / self.size)
        context = np.zeros(len(tokens), np.int64)  # the number of the n-gram before each token; -1: never seen
        for order in self.orders:
            wanted = context * self.size + tokens
            place = np.minimum(np.searchsorted(order.keys, wanted), len(order.keys) - 1)
            hit = (context >= 0) & (order.keys[place] == wanted)
            known = (context >= 0) & order.seen[context]
            p = np.where(known, np.where(hit, order.share[place], 0.0) + order.left[context] * p, p)
            context = np.concatenate([[-1], np.where(hit, place, -1)[:-1]])
        return -np.log(p)


def _discounted(keys: np.ndarray, counts: np.ndarray, size: int, contexts: int) -> _Order:
    context = keys // size
    discount = _discounts(counts)[np.minimum(counts, 3)]
    whole = np.bincount(context, counts, contexts)
    left = np.bincount(context, discount, contexts)
    divisor = np.maximum(whole, 1)
    return _Order(keys, (counts - discount) / divisor[context], left / divisor, whole > 0)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """D of the counts 0, 1, 2, 3 and more: n - (n + 1) Y t_{n+1} / t_n with Y = t_1 / (t_1 + 2 t_2)."""
    t = np.bincount(np.minimum(counts, 5), minlength=6)[:5].astype(np.float64)
    n = np.arange(1, 4)
    # Half a count where the text is too small for an estimate.
    with np.errstate(divide="ignore", invalid="ignore"):
        found = n - (n + 1) * (t[1] / (t[1] + 2 * t[2])) * t[n + 1] / t[n]
    return np.concatenate([[0.0], np.where((found > 0) & (found < n), found, 0.5)])
