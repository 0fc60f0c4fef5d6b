"""Synthetic chest radiographs: drawn shapes, with or without a pneumonia.

Positions are in film units: u runs from -1 (image left, the patient's right) to +1, v from -1 (top) to +1
(bottom).  Brightness is built up as tissue density, 0 for air and about 1 for bone over soft tissue, and turned
into grey levels once, at the end, so that exposure acts on the whole film as it does on a detector.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Field = npt.NDArray[np.float32]
    Point = tuple[float, float]

BURNED_IN_TEXT = "SYNTHETIC"

# The lung on the image's left, clockwise from the apex; the other lung is its mirror image.
_LUNG_OUTLINE: tuple[Point, ...] = (
    (-0.27, -0.76), (-0.44, -0.66), (-0.57, -0.42), (-0.66, -0.08), (-0.70, 0.28), (-0.72, 0.56),
    (-0.60, 0.44), (-0.42, 0.35), (-0.24, 0.38), (-0.12, 0.48), (-0.11, 0.10), (-0.12, -0.30), (-0.15, -0.66),
)  # fmt: skip
_BODY_OUTLINE: tuple[Point, ...] = (
    (-0.20, -1.40), (-0.21, -1.02), (-0.34, -0.90), (-0.78, -0.78), (-1.04, -0.62), (-1.30, -0.10), (-1.50, 0.50),
    (-1.20, 0.50), (-0.94, -0.10), (-0.86, -0.10), (-0.86, 0.20), (-0.90, 0.60), (-0.94, 1.40), (0.94, 1.40),
    (0.90, 0.60), (0.86, 0.20), (0.86, -0.10), (0.94, -0.10), (1.20, 0.50), (1.50, 0.50), (1.30, -0.10),
    (1.04, -0.62), (0.78, -0.78), (0.34, -0.90), (0.21, -1.02), (0.20, -1.40),
)  # fmt: skip
# Superior vena cava on the image's left; aortic knob on its right.
_GREAT_VESSEL_OUTLINE: tuple[Point, ...] = (
    (-0.10, -1.10), (-0.13, -0.30), (-0.17, 0.10), (-0.14, 0.60), (0.20, 0.60), (0.15, 0.00), (0.13, -0.22),
    (0.20, -0.32), (0.17, -0.44), (0.09, -0.50), (0.08, -1.10),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """What all films of one synthetic patient share; lengths in film units, densities from 0 (air) to about 1."""

    width_scale: float
    height_scale: float
    dome_rise: float
    heart_radius: float
    heart_shift: float
    rib_count: int
    rib_slope: float
    rib_density: float
    lung_air: float
    vessel_density: float
    hilum_density: float
    breast_density: float
    breast_drop: float
    gastric_bubble_density: float
    vessel_seed: int


@dataclass(frozen=True, kw_only=True)
class Opacity:
    """A pneumonia drawn on a film: where it lies (film units), its peak density and the seed of its texture."""

    kind: Literal["focal", "diffuse"]
    centre_u: float
    centre_v: float
    radius_u: float
    radius_v: float
    density: float
    texture_seed: int


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw one synthetic patient's build; the same for patients of both classes."""
    return Anatomy(
        width_scale=rng.uniform(0.90, 1.10),
        height_scale=rng.uniform(0.90, 1.08),
        dome_rise=rng.uniform(-0.05, 0.08),
        heart_radius=rng.uniform(0.24, 0.33),
        heart_shift=rng.uniform(0.07, 0.14),
        rib_count=int(rng.integers(8, 11)),
        rib_slope=rng.uniform(0.12, 0.30),
        rib_density=rng.uniform(0.06, 0.11),
        lung_air=rng.uniform(0.38, 0.48),
        vessel_density=rng.uniform(0.05, 0.14),
        hilum_density=rng.uniform(0.05, 0.16),
        breast_density=rng.uniform(0.03, 0.10) if rng.random() < 0.45 else 0.0,
        breast_drop=rng.uniform(0.10, 0.26),
        gastric_bubble_density=rng.uniform(0.05, 0.22) if rng.random() < 0.5 else 0.0,
        vessel_seed=int(rng.integers(2**31)),
    )


def draw_opacity(rng: np.random.Generator, *, least_severity: float = 0.0) -> Opacity:
    """Draw one pneumonia: a consolidation in one lobe or patches over both lungs, from faint (0) to plain (1)."""
    # The square root of a uniform number leans to plain opacities and still leaves a tail of faint ones.
    severity = least_severity + (1 - least_severity) * float(rng.uniform()) ** 0.5
    side = -1.0 if rng.random() < 0.5 else 1.0
    focal = rng.random() < 0.6
    return Opacity(
        kind="focal" if focal else "diffuse",
        centre_u=side * (rng.uniform(0.32, 0.52) if focal else rng.uniform(0.0, 0.20)),
        centre_v=rng.uniform(-0.45, 0.30) if focal else rng.uniform(-0.10, 0.30),
        radius_u=rng.uniform(0.13, 0.22) if focal else rng.uniform(0.45, 0.75),
        radius_v=rng.uniform(0.14, 0.26) if focal else rng.uniform(0.40, 0.65),
        density=0.10 + 0.28 * severity if focal else 0.07 + 0.24 * severity,
        texture_seed=int(rng.integers(2**31)),
    )


def draw_radiograph(
    anatomy: Anatomy, opacity: Opacity | None, rng: np.random.Generator, *, size_px: int = 256
) -> npt.NDArray[np.uint8]:
    """Draw one frontal chest film of a synthetic patient, with or without a pneumonia.

    The position, exposure and noise of this film are drawn from `rng`, in the same way with and without an opacity, so
    two films from equal generators differ by the opacity alone. Returns grey levels [size_px, size_px] from 0 to 255,
    air dark and bone bright.
    """
    import numpy as np

    view = _View(anatomy, rng, size_px)
    lung = view.lungs()
    density = _chest_density(view, lung)
    if opacity is not None:
        # Fluid replaces air: an opacity can fill the lung at most, and only where there is lung.
        density += np.minimum(_opacity_density(view, opacity), 0.85) * lung
    return _expose(density, view, rng)


class _View:
    """One patient seen through one film's position: turns film units into pixels and draws soft-edged shapes."""

    def __init__(self, anatomy: Anatomy, rng: np.random.Generator, size_px: int) -> None:
        import numpy as np

        self.anatomy = anatomy
        self.size_px = size_px
        angle_rad = np.deg2rad(rng.normal(0.0, 2.0))
        scale = 0.96 * rng.uniform(0.96, 1.04) * size_px / 2
        stretch = np.diag([anatomy.width_scale * scale, anatomy.height_scale * scale])
        cos, sin = np.cos(angle_rad), np.sin(angle_rad)
        self._to_px = np.array([[cos, -sin], [sin, cos]]) @ stretch
        self._origin_px = size_px / 2 * (1 + rng.normal(0.0, 0.025, size=2))
        self._to_film = np.linalg.inv(self._to_px)
        cols, rows = np.meshgrid(np.arange(size_px), np.arange(size_px))
        offset = np.stack([cols - self._origin_px[0], rows - self._origin_px[1]])
        film = np.tensordot(self._to_film, offset, axes=1).astype(np.float32)
        self.u: Field = film[0]
        self.v: Field = film[1]

    def pixels(self, points: npt.ArrayLike) -> list[Point]:
        """Film points of shape (n, 2) as pixel positions."""
        import numpy as np

        placed = np.asarray(points, dtype=np.float64) @ self._to_px.T + self._origin_px
        return [(x, y) for x, y in placed.tolist()]

    def shape(self, draw: Callable[[Callable[..., None]], None], softness: float) -> Field:
        """A 0-to-1 layer: `draw` gets a pen, pen(points, width, level); width 0 fills; softness is in film units."""
        import numpy as np
        from PIL import Image, ImageDraw, ImageFilter

        layer = Image.new("L", (self.size_px, self.size_px))
        canvas = ImageDraw.Draw(layer)

        def pen(points: npt.ArrayLike, width: float = 0.0, level: float = 1.0) -> None:
            if width == 0.0:
                canvas.polygon(self.pixels(points), fill=round(255 * level))
            else:
                width_px = max(1, round(width * self.size_px / 2))
                canvas.line(self.pixels(points), fill=round(255 * level), width=width_px)

        draw(pen)
        blurred = layer.filter(ImageFilter.GaussianBlur(softness * self.size_px / 2))
        return np.asarray(blurred, dtype=np.float32) / np.float32(255)

    def spot(self, centre: Point, radius: Point) -> Field:
        """A Gaussian spot of height 1."""
        import numpy as np

        squared = ((self.u - centre[0]) / radius[0]) ** 2 + ((self.v - centre[1]) / radius[1]) ** 2
        spot: Field = np.exp(-0.5 * squared)
        return spot

    def texture(self, rng: np.random.Generator, cells: int) -> Field:
        """Smooth noise of unit variance or so with `cells` bumps across the film, fixed to the patient."""
        import numpy as np
        from PIL import Image

        grid = Image.fromarray(rng.standard_normal((cells + 6, cells + 6), dtype=np.float32))
        # Smooth while the grid is small: a bicubic map of the whole film would take most of the drawing time.
        grid = grid.resize((3 * grid.width, 3 * grid.height), Image.Resampling.BICUBIC)
        # Pillow wants the map from output pixels to grid cells; three spare cells a side cover shift and turn.
        step = self._to_film * (3 * cells / 2)
        shift = np.full(2, grid.width / 2) - step @ self._origin_px
        matrix = (*step[0], shift[0], *step[1], shift[1])
        size = (self.size_px, self.size_px)
        sampled = grid.transform(size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)
        return np.asarray(sampled, dtype=np.float32)

    def lungs(self) -> Field:
        """How much air lies in the beam, 0 to about 1: both lungs less heart, great vessels and spine."""
        import numpy as np

        anatomy = self.anatomy
        outline = np.array(_LUNG_OUTLINE)
        base = outline[:, 1] > 0.30
        right, left = outline.copy(), outline * [-1.0, 1.0]
        right[base, 1] -= anatomy.dome_rise
        left[base, 1] += 0.05 - 0.5 * anatomy.dome_rise

        def both(pen: Callable[..., None]) -> None:
            pen(_smooth(right))
            pen(_smooth(left))

        radius, shift = anatomy.heart_radius, anatomy.heart_shift
        turn = np.linspace(0, 2 * np.pi, 40)
        heart = np.stack([1.05 * radius * np.cos(turn), 0.92 * radius * np.sin(turn)], axis=1)
        heart = heart @ np.array([[0.9, 0.42], [-0.42, 0.9]]) + [shift, 0.24]

        def middle(pen: Callable[..., None]) -> None:
            pen(heart)
            pen(_smooth(np.array(_GREAT_VESSEL_OUTLINE)))

        # A lung is thickest in its middle and yet ends at a sharp line: its soft shape within its hard one.
        hard, soft = self.shape(both, 0.014), self.shape(both, 0.12)
        inside: Field = hard * (0.65 * hard + 0.35 * soft) * (1 - 0.85 * self.shape(middle, 0.022))
        return inside


def _smooth(points: npt.NDArray[np.float64], rounds: int = 3) -> npt.NDArray[np.float64]:
    """Round a closed outline by cutting its corners."""
    import numpy as np

    for _ in range(rounds):
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], axis=1).reshape(-1, 2)
    return points


def _chest_density(view: _View, lung: Field) -> Field:
    """The density of a healthy chest: body wall, air, bones, vessels and the shadows healthy films also have."""
    import numpy as np

    anatomy = view.anatomy
    body = view.shape(lambda pen: pen(_smooth(np.array(_BODY_OUTLINE), 2)), 0.03)
    density: Field = body * (0.60 + 0.10 * np.clip(view.v - 0.1, -0.6, 1) - 0.10 * np.abs(view.u))
    density += 0.06 * body * view.spot((0.0, 0.0), (0.16, 4.0))
    density -= anatomy.lung_air * lung
    density += _bone_density(view) * body
    density += anatomy.vessel_density * view.shape(lambda pen: _vessels(pen, anatomy.vessel_seed), 0.008) * lung
    for side in (-1.0, 1.0):
        density += anatomy.hilum_density * view.spot((side * 0.20, -0.04 - side * 0.02), (0.07, 0.12)) * lung
        if anatomy.breast_density > 0:
            below = view.spot((side * 0.44, anatomy.breast_drop), (0.24, 0.22))
            density += anatomy.breast_density * below * body
    if anatomy.gastric_bubble_density > 0:
        density -= anatomy.gastric_bubble_density * view.spot((0.36, 0.62), (0.12, 0.07)) * (1 - lung)
    rng = np.random.default_rng(anatomy.vessel_seed)
    density += 0.012 * view.texture(rng, 9) * body + 0.012 * view.texture(rng, 40) * body
    return density


def _bone_density(view: _View) -> Field:
    """Spine, ribs, clavicles and shoulder blades as added density."""
    import numpy as np

    anatomy = view.anatomy
    along = np.linspace(0.0, 1.0, 14)

    def back_ribs(pen: Callable[..., None]) -> None:
        # A rib's rim is denser than its core: wide strokes, then weaker and narrower ones over them.
        strokes = ((0.085, 1.0), (0.045, 0.7))
        for (width, level), number, side in product(strokes, range(anatomy.rib_count), (-1.0, 1.0)):
            top = -0.80 + 1.45 * number / anatomy.rib_count
            reach = 0.33 + 0.34 * np.sqrt(min(1.0, (number + 0.5) / 5))
            drop = anatomy.rib_slope * (0.5 + 0.1 * number)
            us = side * (0.07 + reach * np.sin(along * np.pi / 2))
            vs = top - 0.07 * np.sin(along * np.pi * 0.9) + drop * along**2.2
            pen(np.stack([us, vs], axis=1), width, level)

    def front_ribs(pen: Callable[..., None]) -> None:
        for number, side in product(range(1, 6), (-1.0, 1.0)):
            us = side * (0.72 - (0.44 - 0.02 * number) * along)
            pen(np.stack([us, -0.62 + 0.2 * number + 0.22 * along**0.8], axis=1), 0.075)

    def spine_and_shoulders(pen: Callable[..., None]) -> None:
        for side in (-1.0, 1.0):
            blade = [(side * 0.70, -0.70), (side * 0.64, -0.30), (side * 0.70, 0.0), (side * 0.86, -0.40)]
            pen(_smooth(np.array(blade)), 0.0, 0.45)
            us = side * (0.06 + 0.62 * along)
            pen(np.stack([us, -0.60 - 0.14 * along - 0.05 * np.sin(2 * np.pi * along)], axis=1), 0.07)
        pen([(0.0, -1.2), (0.0, 1.2)], 0.17, 0.5)
        for top in np.arange(-1.1, 1.2, 0.145):
            pen([(0.0, top), (0.0, top + 0.11)], 0.19, 0.8)

    bones: Field = anatomy.rib_density * view.shape(back_ribs, 0.010)
    bones += 0.5 * anatomy.rib_density * view.shape(front_ribs, 0.016)
    bones += 0.11 * view.shape(spine_and_shoulders, 0.013)
    return bones


def _vessels(pen: Callable[..., None], seed: int) -> None:
    """Branching lung vessels, thinner and fainter away from the hila."""
    import numpy as np

    rng = np.random.default_rng(seed)

    def grow(start: npt.NDArray[np.float64], heading_rad: float, length: float, width: float, forks: int) -> None:
        headings_rad = heading_rad + np.cumsum(rng.normal(0.0, 0.16, size=4))
        steps = length / 4 * np.stack([np.cos(headings_rad), np.sin(headings_rad)], axis=1)
        points = np.vstack([start, start + np.cumsum(steps, axis=0)])
        pen(points, width, min(1.0, 0.3 + 18 * width))
        if forks:
            for turn in (-0.35, 0.35):
                grow(points[-1], headings_rad[-1] + turn + rng.normal(0, 0.12), 0.75 * length, 0.6 * width, forks - 1)

    for side in (-1.0, 1.0):
        for angle_rad in np.linspace(-1.25, 1.25, 6) + rng.normal(0.0, 0.12, size=6):
            heading_rad = angle_rad if side > 0 else np.pi - angle_rad
            grow(np.array([side * 0.17, -0.04]), heading_rad, rng.uniform(0.18, 0.26), 0.036, 2)


def _opacity_density(view: _View, opacity: Opacity) -> Field:
    """The density an opacity would add in lung that is all air."""
    import numpy as np

    rng = np.random.default_rng(opacity.texture_seed)
    extent = view.spot((opacity.centre_u, opacity.centre_v), (opacity.radius_u, opacity.radius_v))
    coarse, fine = view.texture(rng, 12), view.texture(rng, 34)
    if opacity.kind == "focal":
        uneven = np.clip(1.0 + 0.30 * coarse + 0.18 * fine, 0.1, 1.8)
        # Consolidation fills a lobe and then stops: flatter inside and steeper at the rim than a Gaussian.
        filled: Field = np.float32(opacity.density) * np.minimum(1.4 * extent, 1.0) * uneven
        return filled
    patches = np.clip(0.55 + 0.55 * coarse, 0.0, 1.6) + 0.40 * np.clip(fine + 0.2, 0.0, None)
    spread: Field = np.float32(opacity.density) * extent * patches
    return spread


def _expose(density: Field, view: _View, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Turn density into grey levels: uneven beam, exposure, noise, and the text that marks the film as synthetic."""
    import numpy as np
    from PIL import Image, ImageDraw

    tilt_u, tilt_v = rng.normal(0.0, 0.03, size=2)
    gamma, gain, offset = rng.uniform(0.80, 1.25), rng.uniform(0.95, 1.25), rng.uniform(-0.02, 0.08)
    noise_level = rng.uniform(0.010, 0.030)
    beam = density * (1 + tilt_u * view.u + tilt_v * view.v)
    grain = rng.standard_normal(density.shape, dtype=np.float32) * noise_level
    film = gain * np.clip(beam, 0, None) ** gamma + offset + grain
    image = Image.fromarray(np.clip(255 * film, 0, 255).astype(np.uint8))
    margin_px = round(0.02 * view.size_px)
    ImageDraw.Draw(image).text((margin_px, margin_px), BURNED_IN_TEXT, fill=225, font=_font(view.size_px))
    return np.asarray(image)


@cache
def _font(size_px: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size=max(6.0, 0.042 * size_px))
