"""Motion in a box: the law of reflection, energy, and where the frames show what moves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.data import motion

pytestmark = pytest.mark.usefixtures("quick_programs")


@functools.cache
def flown(seed, batch, length, **options):
    """Positions and velocities of balls, as NumPy arrays."""
    path = jax.jit(lambda key: motion.ball(key, batch, length, **options))(jax.random.key(seed))
    assert path.positions.dtype == path.velocities.dtype == jnp.float32
    return motion.Path(*map(np.asarray, path))


FLIGHT = jax.jit(motion.bounce)


def simulated(position, velocity, steps, height, gravity, substeps=1000):
    """A ball in tiny steps, each exact but for the moment of a reflection."""
    positions, velocities, dt = [], [], 1 / substeps
    x, v = float(position), float(velocity)
    for _ in range(steps):
        positions.append(x)
        velocities.append(v)
        for _ in range(substeps):
            x, v = x + v * dt - gravity * dt**2 / 2, v - gravity * dt
            if not 0 <= x <= height:
                x, v = (-x if x < 0 else 2 * height - x), -v
    return np.array(positions), np.array(velocities)


@pytest.mark.parametrize(
    ("position", "velocity", "height", "gravity"),
    [
        (0.3, 0.17, 1.0, 0.0),
        (0.3, -0.4, 0.8, 0.0),
        (0.2, 0.1, 1.0, 0.02),
        (0.5, -0.3, 0.8, 0.02),
        (0.5, 0.0, 1.0, 0.01),
    ],
)
def test_a_path_is_that_of_a_simulation(position, velocity, height, gravity):
    at = jnp.arange(30, dtype=jnp.float32)
    path = motion.Path(*map(np.asarray, FLIGHT(jnp.float32(position), jnp.float32(velocity), at, height, gravity)))
    positions, velocities = simulated(position, velocity, 30, height, gravity)
    np.testing.assert_allclose(path.positions, positions, atol=2e-3)
    near = np.minimum(positions, height - positions) < 5e-3  # there the two may turn in different frames
    assert near.sum() < 4
    np.testing.assert_allclose(path.velocities[~near], velocities[~near], atol=2e-3)


def test_a_reflection_turns_one_velocity_and_keeps_the_other():
    x, v = flown(0, 200, 60)
    np.testing.assert_allclose(np.abs(v), np.abs(np.broadcast_to(v[:1], v.shape)), rtol=1e-4)
    turned = np.sign(v[1:]) != np.sign(v[:-1])
    assert turned.mean() > 0.02
    # Where the ball turned, what it flew beyond the wall lies mirrored inside.
    ahead = x[:-1] + v[:-1]
    mirrored = np.where(ahead > 0.9, 1.8 - ahead, np.where(ahead < 0.1, 0.2 - ahead, ahead))
    np.testing.assert_allclose(x[1:], mirrored, atol=1e-5)
    np.testing.assert_array_equal(turned, mirrored != ahead)


@pytest.mark.parametrize("gravity", [0.0, 0.005])
def test_energy_stays(gravity):
    path = flown(1, 100, 50, gravity=gravity)
    energy = np.square(path.velocities).sum(-1) / 2 + gravity * path.positions[..., 1]
    np.testing.assert_allclose(energy, np.broadcast_to(energy[:1], energy.shape), atol=1e-5)
    assert path.positions.min() >= 0.1
    assert path.positions.max() <= 0.9


def test_balls_fill_the_box_and_fly_everywhere_by_key():
    path = flown(2, 4000, 3, speed=(0.05, 0.05))
    np.testing.assert_allclose(path.positions.mean((0, 1)), 0.5, atol=0.02)
    np.testing.assert_allclose(np.hypot(*np.moveaxis(path.velocities, -1, 0)), 0.05, rtol=1e-4)
    # The position says nothing of the direction, at any time.
    found = np.asarray(jax.jit(motion.directions)(path.velocities))
    for t in (0, 2):
        np.testing.assert_allclose(np.bincount(found[t], minlength=8) / 4000, 1 / 8, atol=0.025)
        correlation = np.corrcoef(path.positions[t, :, 0], path.velocities[t, :, 0])[0, 1]
        assert abs(correlation) < 0.06
    np.testing.assert_array_equal(path.positions, flown.__wrapped__(2, 4000, 3, speed=(0.05, 0.05)).positions)
    assert (flown(3, 4000, 3, speed=(0.05, 0.05)).positions != path.positions).any()


def test_the_centre_of_mass_of_a_blob_is_the_ball():
    positions = flown(0, 20, 10, radius=0.2).positions
    frames = np.asarray(jax.jit(lambda positions: motion.blobs(positions, 16, 0.2))(positions))
    assert frames.shape == (10, 20, 16, 16)
    mass = frames / frames.sum((-2, -1), keepdims=True)
    centres = (np.arange(16) + 0.5) / 16
    x = (mass.sum(-2) * centres).sum(-1)
    y = (mass.sum(-1) * centres[::-1]).sum(-1)
    np.testing.assert_allclose(np.stack([x, y], -1), positions, atol=0.012)
    assert frames.max() <= 1


PLACE = jax.jit(motion.place, static_argnums=2)


def test_an_image_is_copied_where_pixels_meet_and_shifted_between():
    image = np.asarray(jax.random.uniform(jax.random.key(0), (3, 3)))
    for right, up in ((0, 0), (5, 0), (2, 5)):
        frame = np.zeros((8, 8), np.float32)
        frame[5 - up : 8 - up, right : right + 3] = image
        np.testing.assert_allclose(PLACE(image, jnp.array([right / 5, up / 5]), 8), frame, atol=1e-5)
    half, two, three = (np.asarray(PLACE(image, jnp.array([x / 5, 0.0]), 8)) for x in (2.5, 2, 3))
    np.testing.assert_allclose(half, (two + three) / 2, atol=1e-5)


def test_moving_images_keep_their_light_and_cover_each_other():
    images = np.asarray(jax.random.uniform(jax.random.key(1), (4, 2, 5, 5)))
    move = jax.jit(lambda images: motion.moving(jax.random.key(0), images, 12, 16))
    frames, path = jax.tree.map(np.asarray, move(images))
    assert frames.shape == (12, 4, 16, 16)
    assert path.positions.shape == path.velocities.shape == (12, 4, 2, 2)
    alone = [
        np.asarray(PLACE(np.broadcast_to(images[:, i], (12, 4, 5, 5)), path.positions[:, :, i], 16)) for i in (0, 1)
    ]
    light = np.broadcast_to(images[:, 0].sum((-2, -1)), (12, 4))
    np.testing.assert_allclose(alone[0].sum((-2, -1)), light, rtol=1e-4)
    np.testing.assert_allclose(frames, np.maximum(*alone), atol=1e-6)
    step = np.diff(path.positions, axis=0)
    straight = np.sign(path.velocities[1:]) == np.sign(path.velocities[:-1])
    np.testing.assert_allclose(step[straight], path.velocities[1:][straight], atol=1e-5)
    # The light moves by the velocity: its centre in pixels, 11 of which are room.
    centre = (alone[0].sum(-2) * np.arange(16)).sum(-1) / light
    np.testing.assert_allclose(np.diff(centre, axis=0), 11 * step[:, :, 0, 0], atol=1e-3)


def test_directions_are_sectors_around_the_compass():
    angles = np.deg2rad(np.array([0, 22, 23, 45, 90, 135, 180, -180, 225, 270, 315, 337, 338]))
    found = motion.directions(jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], -1), jnp.float32))
    assert found.dtype == jnp.int32
    assert found.tolist() == [0, 0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 7, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: motion.ball(key, 0, 5), "batch must be at least 1, got 0"),
        (lambda key: motion.ball(key, 1, 0), "length must be at least 1, got 0"),
        (lambda key: motion.ball(key, 1, 5, radius=0.5), r"radius must be in \[0, 0.5\), half of the box, got 0.5"),
        (lambda key: motion.ball(key, 1, 5, speed=(0.2, 0.1)), r"speed must be a minimum and a maximum, got \(0.2"),
        (lambda key: motion.moving(key, jnp.ones((2, 3, 3)), 5, 8), r"shape \(2, 3, 3\), expected \[B, N, S, S\]"),
        (lambda key: motion.moving(key, jnp.ones((2, 1, 9, 9)), 5, 8), "expected squares of at most 8 pixels"),
        (lambda key: motion.place(jnp.ones((3, 2)), jnp.zeros(2), 8), "expected squares of at most 8 pixels"),
    ],
)
def test_motion_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call, jax.random.key(0))
