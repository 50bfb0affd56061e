"""Objects moving in a box with elastic walls, as positions and as small frames: pure functions of a key.

The box is the unit square, y points upward, and a time step is one frame. Paths are computed in closed form, so they
have no integration error, and any frame can be computed on its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = [
    "COMPASS",
    "Path",
    "ball",
    "blobs",
    "bounce",
    "directions",
    "moving",
    "place",
]

Array = jax.Array

COMPASS = ("right", "up right", "up", "up left", "left", "down left", "down", "down right")
"""The eight directions in the order of `directions`."""

_SLOWEST = 1e-9  # an object at rest without gravity would never return


class Path(NamedTuple):
    """Positions and velocities of objects.

    Attributes:
      positions: float32 [T, ..., 2], x and y.
      velocities: float32 [T, ..., 2], distance per frame, at the same time.
    """

    positions: Array
    velocities: Array


def bounce(position: Array, velocity: Array, times: Array, height: float = 1.0, gravity: Array | float = 0.0) -> Path:
    """Motion along one axis between elastic walls at 0 and `height`, under a constant pull towards 0.

    The energy v²/2 + g x never changes, so the way up from 0 is always the same and the way down is its mirror image:

        a² = v² + 2 g x,  b² = max(a² - 2 g h, 0)    the speeds at the floor and at the ceiling
        P = 2 h / (a + b), or a / g                  the time of the way up: to the ceiling, or to rest below it
        s = P - |P - (s_0 + t) mod 2 P|              the time since the floor, counted backwards on the way down
        x = a s - g s² / 2

    Args:
      position: float32 [...], in [0, height], at time 0.
      velocity: float32 [...], at time 0.
      times: float32 [T].
      height: of the ceiling h.
      gravity: g >= 0, may be traced.

    Returns:
      Positions and velocities [T, ...].

    Example:
      >>> from seqjax.data import motion
      >>> motion.bounce(jnp.array([0.5]), jnp.array([0.25]), jnp.arange(5.0)).positions[:, 0].tolist()
      [0.5, 0.75, 1.0, 0.75, 0.5]
    """
    gravity = jnp.asarray(gravity, jnp.float32)
    floor = jnp.maximum(jnp.sqrt(jnp.square(velocity) + 2 * gravity * position), _SLOWEST)
    ceiling = jnp.sqrt(jnp.maximum(jnp.square(floor) - 2 * gravity * height, 0))
    reaches = ceiling > 0
    rise = jnp.where(reaches, 2 * height / (floor + ceiling), floor / jnp.where(reaches, 1.0, gravity))
    since = 2 * position / (floor + jnp.abs(velocity))
    since = jnp.where(velocity < 0, 2 * rise - since, since)

    floor, rise, since = (jnp.expand_dims(x, 0) for x in (floor, rise, since))
    times = times.reshape(-1, *(1,) * position.ndim)
    shape = (times.shape[0], *position.shape)
    floor, rise, phase = (jnp.broadcast_to(x, shape) for x in (floor, rise, jnp.mod(since + times, 2 * rise)))
    since = rise - jnp.abs(rise - phase)
    speed = floor - gravity * since
    return Path(floor * since - gravity * jnp.square(since) / 2, jnp.where(phase < rise, speed, -speed))


def _thrown(key: Array, shape: tuple[int, ...], speed: tuple[float, float]) -> Path:
    """Random positions in the unit square and velocities in any direction, [*shape, 2]."""
    k_position, k_angle, k_speed = jax.random.split(key, 3)
    angle = jax.random.uniform(k_angle, shape, jnp.float32, 0, 2 * jnp.pi)
    size = jax.random.uniform(k_speed, shape, jnp.float32, *speed)
    velocity = jnp.stack([size * jnp.cos(angle), size * jnp.sin(angle)], axis=-1)
    return Path(jax.random.uniform(k_position, (*shape, 2), jnp.float32), velocity)


def _flown(start: Path, length: int, size: float, gravity: Array | float) -> Path:
    times = jnp.arange(length, dtype=jnp.float32)
    axes = [bounce(start.positions[..., i], start.velocities[..., i], times, size, (0.0, gravity)[i]) for i in (0, 1)]
    return Path(*(jnp.stack(pair, axis=-1) for pair in zip(*axes, strict=True)))


def ball(
    key: Array,
    batch: int,
    length: int,
    *,
    speed: tuple[float, float] = (0.03, 0.1),
    gravity: Array | float = 0.0,
    radius: float = 0.1,
) -> Path:
    """A ball in the unit square, thrown from a random position in a random direction.

    One position does not tell where it goes next; two positions do, except at a wall.

    Args:
      key: PRNG key.
      batch: number of balls B.
      length: number of frames T.
      speed: minimum and maximum initial speed, in sides of the box per frame.
      gravity: sides of the box per frame², downwards; may be traced.
      radius: of the ball, in [0, 0.5): its centre stays in [radius, 1 - radius].

    Returns:
      The `Path` of the centre, [T, B, 2].

    Raises:
      ValueError: no balls or frames, a radius outside [0, 0.5), a negative or decreasing speed range.

    Example:
      >>> from seqjax.data import motion
      >>> path = motion.ball(jax.random.key(0), batch=2, length=20)
      >>> path.positions.shape, bool((path.positions.min() >= 0.1) & (path.positions.max() <= 0.9))
      ((20, 2, 2), True)
    """
    _at_least(1, batch=batch, length=length)
    _check_speed(speed)
    if not 0 <= radius < 0.5:
        raise ValueError(f"radius must be in [0, 0.5), half of the box, got {radius}")
    room = 1 - 2 * radius
    start = _thrown(key, (batch,), speed)
    path = _flown(Path(room * start.positions, start.velocities), length, room, gravity)
    return Path(radius + path.positions, path.velocities)


def blobs(positions: Array, size: int, radius: float = 0.1) -> Array:
    """Frames of balls: a Gaussian of height 1 whose standard deviation is half the radius.

    Args:
      positions: float32 [..., 2] in the unit square.
      size: pixels per side; the centre of pixel i is at (i + 1/2) / size, and the first row is the top one.
      radius: of the ball.

    Returns:
      float32 [..., size, size] in [0, 1].

    Example:
      >>> from seqjax.data import motion
      >>> motion.blobs(jnp.array([0.75, 0.75]), 2).round(2).tolist()  # right and up
      [[0.0, 1.0], [0.0, 0.0]]
    """
    centres = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    centres = centres.reshape(*(1,) * (positions.ndim - 1), size)
    x, y = (
        jnp.exp(-2 * jnp.square((positions[..., i, None] - line) / radius))
        for i, line in enumerate((centres, jnp.flip(centres)))
    )
    return y[..., :, None] * x[..., None, :]


def place(images: Array, positions: Array, size: int) -> Array:
    """Images on black frames, placed between pixels by linear interpolation.

    Args:
      images: float32 [..., S, S], S <= size.
      positions: float32 [..., 2]: (0, 0) is the lower left corner of the frame, (1, 1) the upper right one. At a whole
        number of pixels the image is copied unchanged.
      size: pixels per side of the frame.

    Returns:
      float32 [..., size, size].

    Raises:
      ValueError: images that are not square or do not fit.

    Example:
      >>> from seqjax.data import motion
      >>> motion.place(jnp.ones((1, 1)), jnp.array([0.25, 1.0]), 3).tolist()  # half a pixel from the left, at the top
      [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    side = images.shape[-1]
    if images.shape[-2] != side or side > size:
        raise ValueError(f"images have shape {images.shape}, expected squares of at most {size} pixels")
    lead = (1,) * (positions.ndim - 1)
    frame = jnp.arange(size, dtype=jnp.float32).reshape(*lead, size, 1)
    image = jnp.arange(side, dtype=jnp.float32).reshape(*lead, 1, side)

    def weights(offset):  # [...] to [..., size, side]: weight of each image pixel in each frame pixel
        return jnp.maximum(1 - jnp.abs(frame - image - (size - side) * offset[..., None, None]), 0)

    rows, columns = weights(1 - positions[..., 1]), weights(positions[..., 0])
    return jnp.einsum("...ri,...ij,...cj->...rc", rows, images, columns)


def moving(key: Array, images: Array, length: int, size: int, speed: tuple[float, float] = (0.05, 0.1)) -> tuple:
    """Videos of images that move in straight lines and bounce off the borders of the frame (Moving MNIST).

    Where images overlap, the brighter pixel is shown. Source: Srivastava, Mansimov & Salakhutdinov 2015 (arXiv
    1502.04681): frames of 64 pixels, two digits of 28, a speed of 0.1, 20 frames.

    Args:
      key: PRNG key.
      images: float32 [B, N, S, S] in [0, 1], the N images of each video.
      length: number of frames T.
      size: pixels per side of a frame.
      speed: minimum and maximum speed per frame, in units of the range of an image, size - S pixels.

    Returns:
      frames float32 [T, B, size, size] in [0, 1], and the `Path` of the images [T, B, N, 2], in these units.

    Raises:
      ValueError: images of another rank or too large, no frames, a negative or decreasing speed range.
    """
    _at_least(1, length=length)
    _check_speed(speed)
    if images.ndim != 4:
        raise ValueError(f"images have shape {images.shape}, expected [B, N, S, S]")
    path = _flown(_thrown(key, images.shape[:2], speed), length, 1.0, 0.0)
    frames = jax.vmap(lambda positions: place(images, positions, size))(path.positions)
    return frames.max(axis=2), path


def directions(velocities: Array) -> Array:
    """The index of the nearest direction in `COMPASS`: float32 [..., 2] to int32 [...].

    Example:
      >>> from seqjax.data import motion
      >>> [motion.COMPASS[i] for i in motion.directions(jnp.array([[0.0, 2.0], [-1.0, -0.9]]))]
      ['up', 'down left']
    """
    angle = jnp.arctan2(velocities[..., 1], velocities[..., 0])
    return jnp.round(angle * (4 / jnp.pi)).astype(jnp.int32) % 8


def _at_least(least: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < least:
            raise ValueError(f"{name} must be at least {least}, got {size}")


def _check_speed(speed: tuple[float, float]) -> None:
    if not 0 <= speed[0] <= speed[1]:
        raise ValueError(f"speed must be a minimum and a maximum, got {speed}")
