"""Procedural surfaces of the surroundings: a value between dark (0) and bright (1) at a point of a plane.

Coordinates are in units of the surface's own scale (a brick, a plank, a book); nothing is stored, all is hashed
noise.
"""

import numpy as np

from lib.compiled import compiled

PLASTER, STRIPES, TILES, BRICK, PLANKS, CLOTH, PICTURE, BOOKS, PAGE, WINDOW, FOLIAGE, SKY, PLAIN = range(13)


@compiled
def surface_value(kind, u, v, seed):
    """The value 0..1 of surface `kind` at (u, v)."""
    if kind == PLASTER:
        return 0.3 + 0.7 * turbulence(u, v, seed, 3)
    if kind == STRIPES:
        return (0.15 + 0.7 * (_fraction(u) < 0.2 + 0.6 * hashed(0, 0, seed))) + 0.15 * noise(6 * u, 6 * v, seed)
    if kind == TILES:
        grout = min(_edge(u), _edge(v)) < 0.03
        return 0.1 if grout else 0.45 + 0.35 * hashed(_cell(u), _cell(v), seed) + 0.2 * noise(9 * u, 9 * v, seed)
    if kind == BRICK:
        shifted = 0.5 * u + 0.5 * (_cell(v) & 1)
        grout = min(2 * _edge(shifted), _edge(v)) < 0.07
        return 0.9 if grout else 0.1 + 0.5 * hashed(_cell(shifted), _cell(v), seed) + 0.3 * noise(5 * u, 9 * v, seed)
    if kind == PLANKS:
        plank = _cell(v)
        grain = noise(0.6 * u + 40 * hashed(plank, 1, seed), 14 * v + 1.5 * noise(0.7 * u, v, seed + 1), seed + 2)
        return 0.05 if _edge(v) < 0.02 else 0.2 + 0.35 * hashed(plank, 0, seed) + 0.45 * grain
    if kind == CLOTH:
        folds = noise(1.2 * u + 0.5 * noise(0.5 * u, 0.5 * v, seed + 1), 0.25 * v, seed)
        return 0.75 * folds + 0.25 * noise(30 * u, 30 * v, seed)
    if kind == PICTURE:
        return _mondrian(u, v, seed)
    if kind == BOOKS:
        return _books(u, v, seed)
    if kind == PAGE:
        return _page(u, v, seed)
    if kind == WINDOW:
        bar = min(_edge(u), _edge(v)) < 0.04
        return 0.25 if bar else 0.6 + 0.4 * noise(2 * u, 2 * v, seed) * (_fraction(v) + 0.3)
    if kind == FOLIAGE:
        return turbulence(u, v, seed, 5) ** 1.5
    if kind == SKY:
        return 0.55 + 0.45 * min(max(2.2 * turbulence(u, v, seed, 4) - 0.6, 0.0), 1.0)
    return 0.85 + 0.15 * noise(3 * u, 3 * v, seed)


@compiled
def _mondrian(u, v, seed):
    """Nested random rectangles with gradients, some round: posters, paintings, packages."""
    value, cell_u, cell_v = 0.5, u, v
    for level in range(3):
        row = _cell(cell_v)
        cell_u += 0.7 * hashed(row, level, seed)
        shade = hashed(_cell(cell_u), row, seed + 3 * level)
        if hashed(_cell(cell_u), row, seed + 3 * level + 1) < 0.7:
            value = shade + 0.3 * (_fraction(cell_v) - 0.5)
        x, y = _fraction(cell_u) - 0.5, _fraction(cell_v) - 0.5
        if hashed(_cell(cell_u), row, seed + 3 * level + 2) < 0.25 and x * x + y * y < 0.12:
            value = 1.0 - shade
        cell_u, cell_v = 2.3 * cell_u, 2.7 * cell_v
    return min(max(value, 0.0), 1.0)


@compiled
def _books(u, v, seed):
    """Shelves one unit high with books of many widths and heights; dark gaps between and above them."""
    shelf, height = _cell(v), _fraction(v)
    if height < 0.07:
        return 0.5
    slot = 7.0 * u + 3.0 * hashed(shelf, 0, seed)
    book = _cell(slot)
    if hashed(book // 5, shelf, seed + 5) < 0.2:
        return 0.06 + 0.1 * noise(3 * u, 3 * v, seed)
    top = 0.55 + 0.35 * hashed(book, shelf, seed + 1)
    if height > top or _edge(slot) < 0.05:
        return 0.0
    label = 0.35 * (abs(height - 0.4) < 0.09) * (hashed(book, shelf, seed + 3) < 0.6)
    shade = 0.15 + 0.75 * hashed(book, shelf, seed + 2)
    return shade + (label if shade < 0.5 else -label)


@compiled
def _page(u, v, seed):
    """Lines of words of dark print on a bright ground, blocks left out: paper, screens."""
    line = _cell(12 * v)
    word = _cell(9 * u + 5 * hashed(line, 0, seed))
    printed = _fraction(12 * v) < 0.5 and hashed(word, line, seed) < 0.7 and hashed(line // 6, _cell(u), seed + 1) < 0.8
    return 0.15 + 0.4 * noise(60 * u, 2 * v, seed) if printed else 0.95


@compiled
def turbulence(u, v, seed, octaves):
    """Sum of octaves of noise, 0..1."""
    total, weight, amplitude = 0.0, 0.0, 1.0
    for octave in range(octaves):
        total += amplitude * noise(u, v, seed + 17 * octave)
        weight += amplitude
        u, v, amplitude = 2.03 * u, 2.03 * v, 0.55 * amplitude
    return total / weight


@compiled
def noise(u, v, seed):
    """Smoothly interpolated hashed values of the integer lattice, 0..1."""
    i, j = _cell(u), _cell(v)
    x, y = u - i, v - j
    x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)
    a, b = hashed(i, j, seed), hashed(i + 1, j, seed)
    c, d = hashed(i, j + 1, seed), hashed(i + 1, j + 1, seed)
    return (a + x * (b - a)) * (1 - y) + (c + x * (d - c)) * y


@compiled
def hashed(i, j, seed):
    """A number 0..1 that belongs to a lattice point."""
    h = np.uint32(
        np.uint32(i) * np.uint32(0x9E3779B1)
        ^ np.uint32(j) * np.uint32(0x85EBCA77)
        ^ np.uint32(seed) * np.uint32(0xC2B2AE3D)
    )
    h = np.uint32((h ^ (h >> np.uint32(15))) * np.uint32(0x2C1B3C6D))
    h = np.uint32((h ^ (h >> np.uint32(12))) * np.uint32(0x297A2D39))
    return np.uint32(h ^ (h >> np.uint32(15))) / 4294967296.0


@compiled
def _cell(x):
    return int(np.floor(x))


@compiled
def _fraction(x):
    return x - np.floor(x)


@compiled
def _edge(x):
    """Distance to the nearest integer."""
    return abs(x - np.floor(x + 0.5))
