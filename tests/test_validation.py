"""Checks of arguments: what passes, and what the errors say."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tfp_glow._core import validation


@pytest.mark.parametrize("value, least, below, expected", [
    (1, 1, math.inf, True), (np.int64(3), 1, math.inf, True), (0, 1, math.inf, False), (0, 0, math.inf, True),
    (True, 1, math.inf, False), (np.True_, 1, math.inf, False), (1., 1, math.inf, False), ("1", 1, math.inf, False),
    (None, 1, math.inf, False), (7, 1, 8, True), (8, 1, 8, False), (-3, -math.inf, math.inf, True)])
def test_is_int(value, least, below, expected):
  assert validation.is_int(value, least, below) is expected


@pytest.mark.parametrize("value, expected", [
    (1, True), (0.5, True), (np.float32(2.), True), (math.inf, True), (True, False), (np.True_, False), (1j, False),
    ("1", False), (None, False)])
def test_is_number(value, expected):
  assert validation.is_number(value) is expected


@pytest.mark.parametrize("check, match", [
    (lambda: validation.check_counts(a=1, b=0), "^`b` must be a positive `int`. Received: 0$"),
    (lambda: validation.check_counts(least=2, a=True), "^`a` must be an `int` of at least 2. Received: True$"),
    (lambda: validation.check_counts(below=3, a=3), "^`a` must be a positive `int` and below 3. Received: 3$"),
    (lambda: validation.check_counts(0, 3, a=-1), "^`a` must be an `int` of at least 0 and below 3. Received: -1$"),
    (lambda: validation.check_fractions(a=1.), "^`a` must be a number above 0 and below 1. Received: 1.0$"),
    (lambda: validation.check_fractions(0.5, a=math.nan), "^`a` must be a number.*below 0.5. Received: nan$"),
    (lambda: validation.check_bools(a=True, b=1), "^`b` must be a `bool`. Received: 1$"),
    (lambda: validation.check_choice("a", "z", ("x", "y")), r"^`a` must be one of \('x', 'y'\). Received: 'z'$"),
    (lambda: validation.check_choice("a", True, (1, 3)), r"^`a` must be one of \(1, 3\). Received: True$"),
    (lambda: validation.check_choice("a", 1., (1, 3)), r"^`a` must be one of \(1, 3\). Received: 1.0$"),
    (lambda: validation.check_seed(-1), "^`seed` must be an `int` of at least 0, or None. Received: -1$"),
    (lambda: validation.checked_dtype("float16"), "^`dtype` must be float32 or float64.*Received: 'float16'$"),
    (lambda: validation.checked_event_shape("a", (8, 8)), r"^`a` must be \(height, width, channels\), positive `int`s. "
     r"Received: \(8, 8\)$"),
    (lambda: validation.checked_event_shape("a", (8, True, 1), vectors=True), r"^`a` must be \(height, width, "
     r"channels\) or \(channels,\), positive `int`s. Received: \(8, True, 1\)$"),
    (lambda: validation.checked_event_shape("a", 8), "Received: 8$"),
    (lambda: validation.checked_event_shape("a", (8.,), vectors=True), r"Received: \(8.0,\)$"),
])
def test_what_is_refused(check, match):
  with pytest.raises(ValueError, match=match):
    check()


@pytest.mark.slow
def test_what_passes():
  validation.check_counts(a=1, b=np.int32(2))
  validation.check_counts(least=0, below=1, a=0)
  validation.check_fractions(a=0.5, b=np.float32(0.1))
  validation.check_bools(a=True, b=np.False_)
  validation.check_choice("a", 3, (1, 3))
  validation.check_seed(None)
  assert validation.checked_dtype("float64") == tf.float64
  assert validation.checked_event_shape("a", tf.TensorShape([8, 4, 3])) == (8, 4, 3)
  assert validation.checked_event_shape("a", [np.int64(5)], vectors=True) == (5,)
