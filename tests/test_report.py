"""`report.html` of a run, in a real browser and from a file: no server, no other files."""

import shutil

import numpy as np
import pytest
import run_pictures
import run_report
from selenium.webdriver.common.by import By

pytestmark = pytest.mark.slow

RESULTS = {"bits_per_dim": 2.0512345, "epochs": 3, "interrupted": False,
           "settings": {"data": "<b>photos</b>", "max_gradient_norm": None}, "versions": {"tensorflow": "2.21.0"}}


@pytest.fixture
def report(tmp_path):
  """A report alone, without the pictures that it was made from."""
  folder = tmp_path / "run"
  folder.mkdir()
  rows = [np.full([4, 8, 8, 1], 255 * i, np.uint8) for i in range(2)]
  run_pictures.save_grid(folder / run_pictures.SAMPLES, rows, ["T = 0", "T = 1"])
  run_pictures.save_curve(folder / run_pictures.CURVE, {"bits_per_dim": [3., 2.5, 2.1]}, 2.05)
  run_report.save_report(folder, RESULTS, run_pictures.FILES)
  shutil.move(folder / run_report.REPORT, tmp_path)
  shutil.rmtree(folder)
  return tmp_path / run_report.REPORT


def test_report_shows_pictures_numbers_and_settings(browser, report):
  browser.get(report.as_uri())
  assert browser.title == "<b>photos</b>: 2.051 test bits per dimension"
  images = browser.find_elements(By.TAG_NAME, "img")
  widths = [int(image.get_property("naturalWidth")) for image in images]
  assert len(images) == 2 and min(widths) > 50
  assert [image.get_attribute("alt") for image in images] == [
      "Samples: a row for each temperature, or for each class", "Bits per dimension after each epoch"]
  rows = {cell.text: value.text for cell, value in (
      row.find_elements(By.TAG_NAME, "td") for row in browser.find_elements(By.TAG_NAME, "tr"))}
  assert rows == {"bits_per_dim": "2.05123", "epochs": "3", "interrupted": "False", "data": "<b>photos</b>",
                  "max_gradient_norm": "None", "tensorflow": "2.21.0"}
  assert not browser.get_log("browser")


def test_report_fits_a_phone(browser, report):
  metrics = {"width": 420, "height": 800, "deviceScaleFactor": 1, "mobile": True}
  browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
  browser.get(report.as_uri())
  assert browser.execute_script("return document.documentElement.scrollWidth") <= 420


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_are_framed_on_light_and_dark_pages(browser, report, scheme):
  features = [{"name": "prefers-color-scheme", "value": scheme}]
  browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
  try:
    browser.get(report.as_uri())
    image = browser.find_element(By.TAG_NAME, "img")
    assert image.value_of_css_property("background-color") == "rgba(255, 255, 255, 1)"
    frame = image.value_of_css_property("border-top-color")
    assert frame.startswith("rgba(140, 149, 159, 0.4") and image.value_of_css_property("border-top-width") == "1px"
    page = browser.execute_script(
        "return getComputedStyle(document.body).color")  # The reader's own: black on white, or white on black.
    assert page == {"light": "rgb(0, 0, 0)", "dark": "rgb(255, 255, 255)"}[scheme]
  finally:
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
