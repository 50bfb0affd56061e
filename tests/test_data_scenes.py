"""Scenes of digits: every caption is true of its picture, and what is held out is never drawn in training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.data import mnist, scenes
from seqjax.data.pairs import PADDING, START, STOP

KINDS = scenes.kinds()


pytestmark = pytest.mark.usefixtures("quick_programs")


def squares(copies=1):
    """Digits that are squares, the digit in their brightness; the copies of one differ by a little."""
    labels = np.tile(np.arange(10, dtype=np.int32), copies)
    ink = 20 * (labels + 1) + np.repeat(np.arange(copies), 10)
    return mnist.Digits(np.broadcast_to(ink[:, None, None], (len(ink), 28, 28)).astype(np.uint8), labels)


@functools.cache
def drawing(part, count, size):
    """The compiled `draw` of the kinds of a part, or of all."""
    kinds = jnp.asarray(np.concatenate(list(KINDS.values())) if part == "all" else KINDS[part])
    digits = scenes.by_label(squares(3), 7)
    return jax.jit(lambda key: scenes.draw(key, digits, kinds, count, size))


def drawn(seed, part, count, size=16):
    made = drawing(part, count, size)(jax.random.key(seed))
    assert (made.pictures.dtype, made.captions.dtype, made.kinds.dtype) == (jnp.float32, jnp.int32, jnp.int32)
    return jax.tree.map(np.asarray, made)


def test_captions_say_what_their_sentences_say():
    assert scenes.sentence(3, scenes.ALONE, 0) == "a three"
    assert scenes.sentence(8, 2, 8) == "an eight above an eight"
    every = np.concatenate(list(KINDS.values()))
    captions = scenes.CAPTIONS[tuple(every.T)]
    assert len(np.unique(captions, axis=0)) == len(every) == 210
    for kind, caption in zip(every.tolist(), captions, strict=True):
        assert caption[0] == START
        assert " ".join(scenes.VOCABULARY.decode(caption)) == scenes.sentence(*kind)
        end = caption.tolist().index(STOP)
        assert (caption[end + 1 :] == PADDING).all()


def test_what_is_held_out_combines_what_is_seen():
    seen, held_out = ({tuple(kind) for kind in KINDS[part].tolist()} for part in ("seen", "held_out"))
    assert not seen & held_out
    assert len(held_out) == 40
    assert all(first <= second or relation == scenes.ALONE for first, relation, second in seen | held_out)
    for first, relation, second in held_out:
        others = {other for a, other, b in seen if (a, b) == (first, second) and other != scenes.ALONE}
        assert relation not in others
        assert len(others) == (3 if first < second else 1)
    assert {tuple(row) for row in scenes.CAPTIONS[tuple(KINDS["held_out"].T)][:, :3].tolist()} <= {
        tuple(row) for row in scenes.CAPTIONS[tuple(KINDS["seen"].T)][:, :3].tolist()
    }


def corners(picture, digit):
    """Left and upper pixel of all 7 x 7 squares of the brightness of a digit."""
    there = np.abs(picture * 255 - 20 * (digit + 1) - 1) < 1.5
    windows = np.lib.stride_tricks.sliding_window_view(there, (7, 7)).all((2, 3))
    return np.argwhere(windows)[:, ::-1]


def test_a_caption_is_true_of_its_picture():
    made = drawn(0, "all", 600)
    assert len(np.unique(made.kinds, axis=0)) > 190
    np.testing.assert_array_equal(made.captions, scenes.CAPTIONS[tuple(made.kinds.T)])
    apart = []
    for picture, (first, relation, second) in zip(made.pictures, made.kinds, strict=True):
        # The digits stand in opposite corners of the box around all ink.
        rows, columns = np.nonzero(picture > 0.01)
        x, y = np.ptp(columns) - 6, np.ptp(rows) - 6
        if relation == scenes.ALONE:
            assert (x, y, len(rows)) == (0, 0, 49)
            assert len(corners(picture, first)) == 1
            continue
        apart.append((x, y) if relation < 2 else (y, x))
        # Where squares meet the brighter one is seen, and that is the second; of the first one something may be hidden.
        places = [corners(picture, digit) for digit in (first, second)]
        assert len(places[1])
        if first != second and len(places[0]):
            x, y = places[0][0] - places[1][0]
            assert (x <= -6, x >= 6, y <= -6, y >= 6) == tuple(i == relation for i in range(4))
    along, across = np.array(apart).T
    assert (along.min(), along.max(), across.min(), across.max()) == (6, 9, 0, 2)


def test_scenes_are_of_the_kinds_asked_for_and_of_their_key():
    made = drawn(1, "held_out", 200)
    assert {tuple(kind) for kind in made.kinds.tolist()} <= {tuple(kind) for kind in KINDS["held_out"].tolist()}
    ink = np.unique(np.round(made.pictures * 255)).astype(int)
    assert set(ink) == {0, *(20 * (digit + 1) + copy for digit in range(10) for copy in range(3))}
    for one, other in zip(made, drawn(1, "held_out", 200), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (drawn(2, "held_out", 200).kinds != made.kinds).any()


def test_digits_by_label():
    images = np.arange(12 * 784).reshape(12, 28, 28).astype(np.uint8)
    digits = mnist.Digits(images, np.array([*range(9, -1, -1), 4, 4], np.int32))
    found = scenes.by_label(digits, 14)
    assert (found.images.dtype, found.borders.dtype) == (jnp.uint8, jnp.int32)
    assert found.borders.tolist() == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 12]
    mean = images[10, 2:4, 6:8].mean()
    assert int(found.images[5, 1, 3]) == np.round(mean)
    np.testing.assert_array_equal(scenes.by_label(digits, 28).images[0], images[9])


def test_what_is_refused():
    with pytest.raises(ValueError, match="side must divide 28, got 12"):
        scenes.by_label(squares(), 12)
    with pytest.raises(ValueError, match=r"no image of the digits \[7, 8, 9\]: every digit needs one"):
        scenes.by_label(mnist.Digits(*(values[:7] for values in squares())))
    with pytest.raises(ValueError, match="pictures of 12 pixels have no room for two digits of 7, expected 13"):
        drawn(0, "seen", 2, size=12)


def test_handwritten_digits(data_dir):
    if not (data_dir / "mnist").is_dir():
        pytest.skip(f"no MNIST at {data_dir / 'mnist'}")
    parts = mnist.load(data_dir)
    found = scenes.by_label(parts["test"])
    assert np.diff(found.borders).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # Ones have the least ink, zeros the most.
    ink = [np.asarray(found.images[a:b]).mean() for a, b in zip(found.borders, found.borders[1:], strict=False)]
    assert (np.argmin(ink), np.argmax(ink)) == (1, 0)
