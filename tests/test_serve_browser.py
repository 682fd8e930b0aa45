"""The web page of examples/serve.py in a real browser: Debian's Chromium, without a display.

These commands draw the README's picture of it again:

  python examples/train_glow.py && python examples/edit_latents.py output
  TFP_GLOW_RUN=output pytest tests/test_serve_browser.py -k picture_of_the_readme
"""

import contextlib
import os
import pathlib
import threading

import image_files
import pytest
import served_models
import waitress
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

serve = served_models.load_script()
SECONDS = 120  # Seconds to wait for something to happen, even on a slow machine.

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def served(path, classes, directions, examples, contexts=()):
  """Serves in a thread of this process; gives the application and its address."""
  app = serve.make_app(serve.ServedModel(path, list(classes)), directions, examples, contexts)
  server = waitress.create_server(app, host="127.0.0.1", port=0)
  threading.Thread(target=server.run, daemon=True).start()
  yield app, f"http://127.0.0.1:{server.effective_port}/"
  server.close()


@pytest.fixture(scope="module")
def grey(grey_path):
  """All options of the command line: images to pick, and sliders."""
  examples = [image_files.pixels(*served_models.GREY_SHAPE, seed=seed) for seed in range(12)]
  with served(grey_path, [], served_models.directions(), examples) as app_and_url:
    yield app_and_url


@pytest.fixture(scope="module")
def colour(colour_path):
  """A page with classes, but neither images nor sliders."""
  with served(colour_path, served_models.CLASSES, {}, []) as app_and_url:
    yield app_and_url


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
  """A page with a context, two of them to pick."""
  path = served_models.export_conditional(tmp_path_factory.mktemp("conditional"))
  contexts = [image_files.pixels(*served_models.CONTEXT_SHAPE, seed=seed) for seed in (0, 1)]
  with served(path, [], {}, [image_files.pixels(*served_models.GREY_SHAPE)], contexts) as app_and_url:
    yield app_and_url


class Page:
  """What a user sees and does."""

  def __init__(self, browser, app_and_url, width=1100, height=800):
    self.browser = browser
    self._client = app_and_url[0].test_client()
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("browser")  # Elements of the page before.
    browser.get(app_and_url[1])
    self.wait_for(lambda: self.all("#samples img") and all(self.sources("#samples img")))

  def all(self, selector):
    return self.browser.find_elements(By.CSS_SELECTOR, selector)

  def one(self, selector):
    (element,) = self.all(selector)
    return element

  def run(self, script, *arguments):
    return self.browser.execute_script(script, *arguments)

  def wait_for(self, condition):
    return WebDriverWait(self.browser, SECONDS, 0.05).until(lambda _: condition())

  def sources(self, selector):
    return self.run("return [...document.querySelectorAll(arguments[0])].map((image) => image.src)", selector)

  def source(self, selector):
    (source,) = self.sources(selector)
    return source

  def focused(self):
    return self.browser.switch_to.active_element

  def press(self, *keys):
    for key in keys:
      ActionChains(self.browser).send_keys(key).perform()

  def answer(self, path, **body):
    """The server's answer to another client."""
    return self._client.post(path, json=body).json

  def wait_until_shown(self, id_, answer):
    """Waits for an image and the bits under it."""
    bits = f"{answer['bits_per_dim']:.2f} bits per dim"
    self.wait_for(lambda: self.source(f"#{id_}") == answer["image"] and self.one(f"#{id_}-bits").text == bits)


def of_run(folder):
  """What `serve.main` serves of a run of the example."""
  model = serve.ServedModel(folder / "saved_model", [])
  directions = serve.load_directions(folder / "edits" / "directions.npz", model)
  return served(folder / "saved_model", [], directions, serve.load_examples(folder / "test_images", model))


@pytest.mark.skipif("TFP_GLOW_RUN" not in os.environ, reason="draws docs/serve.png: TFP_GLOW_RUN=output")
def test_picture_of_the_readme(browser):
  with of_run(pathlib.Path(os.environ["TFP_GLOW_RUN"])) as app_and_url:
    page = Page(browser, app_and_url, width=1000, height=1043)
    sources = page.sources("#first img")
    page.all("#first label")[5].click()
    page.all("#second label")[7].click()
    page.run("arguments[0].value = 1; arguments[0].dispatchEvent(new Event('input'))", page.one("#direction-0"))
    name = page.one("#direction-0").accessible_name
    page.wait_until_shown("edited", page.answer("/api/edit", image=sources[5], strengths={name: 1}))
    images = page.answer("/api/interpolate", first=sources[5], second=sources[7])["images"]
    page.wait_for(lambda: page.sources("#steps img") == images)
    picture = pathlib.Path(__file__).parent.parent / "docs" / "serve.png"
    assert browser.save_screenshot(str(picture))


def messages(browser):
  return [entry["message"] for entry in browser.get_log("browser")]


def test_shows_the_first_image_its_bits_the_way_to_the_second_and_samples(browser, grey):
  page = Page(browser, grey)
  assert "8 × 8" in page.one("#summary").text
  first, second = page.sources("#first img")[:2]
  assert len(page.all("#first [type=radio]")) == len(page.all("#second [type=radio]")) == 12
  page.wait_until_shown("original", page.answer("/api/image", image=first))
  page.wait_until_shown("edited", page.answer("/api/edit", image=first, strengths={}))
  images = page.answer("/api/interpolate", first=first, second=second)["images"]
  page.wait_for(lambda: page.sources("#steps img") == images)
  assert page.sources("#samples img") == page.answer("/api/sample", temperature=0.7, seed=0)["images"]
  assert not messages(browser) and not page.one("#error").is_displayed()


def test_keyboard_reaches_everything_in_order(browser, grey):
  page = Page(browser, grey)
  reached = []
  while page.focused().tag_name != "body" or not reached:
    page.press(Keys.TAB)
    reached.append(page.run("return document.activeElement.id || document.activeElement.name || "
                            "document.activeElement.querySelector('img')?.alt"))
  assert reached[:-1] == ["first", "first-file", "direction-0", "direction-1", "reset", "second", "second-file",
                          "temperature", "draw", *(f"Sample {i}" for i in range(1, 17))]


def test_every_control_and_every_image_has_a_name(browser, grey):
  page = Page(browser, grey)
  names = [element.accessible_name for element in page.all("main input, main button")]
  assert all(names), names
  assert {"darker", "3 to 8", "Temperature", "Image 1", "Sample 16", "Or open a file"} <= set(names)
  assert all(element.get_attribute("alt") for element in page.all("img"))
  assert [page.one(f"#{id_}").aria_role for id_ in ("error", "edited-bits")] == ["alert", "status"]


def test_arrow_keys_move_a_slider_and_the_image_changes(browser, grey):
  page = Page(browser, grey)
  first = page.source("#first label:first-child img")
  slider = page.one("#direction-0")
  page.run("arguments[0].focus()", slider)
  page.press(*[Keys.ARROW_RIGHT] * 3)
  changed = page.answer("/api/edit", image=first, strengths={"darker": 0.3})
  assert changed["image"] != page.answer("/api/edit", image=first, strengths={})["image"]
  page.wait_until_shown("edited", changed)
  assert page.focused() == slider and slider.get_attribute("value") == "0.3"
  page.press(Keys.TAB, Keys.END)
  page.wait_until_shown("edited", page.answer("/api/edit", image=first, strengths={"darker": 0.3, "3 to 8": 2}))
  page.press(Keys.TAB, Keys.ENTER)
  page.wait_until_shown("edited", page.answer("/api/edit", image=first, strengths={}))
  assert slider.get_attribute("value") == "0"


def test_slider_in_motion_asks_for_the_newest_only(browser, grey):
  page = Page(browser, grey)
  first = page.source("#first label:first-child img")
  page.wait_until_shown("edited", page.answer("/api/edit", image=first, strengths={}))
  page.run("""
      performance.clearResourceTimings();
      for (let i = 1; i <= 20; i++) {
        arguments[0].value = i / 10;
        arguments[0].dispatchEvent(new Event("input"));
      }""", page.one("#direction-0"))
  page.wait_until_shown("edited", page.answer("/api/edit", image=first, strengths={"darker": 2}))
  assert page.run("return performance.getEntriesByType('resource').length") == 2  # The first and the last.


def test_images_are_picked_by_click_and_by_arrow_keys(browser, grey):
  page = Page(browser, grey)
  sources = page.sources("#first img")
  page.all("#first label")[4].click()
  page.wait_until_shown("original", page.answer("/api/image", image=sources[4]))
  page.press(Keys.ARROW_RIGHT)
  page.wait_until_shown("original", page.answer("/api/image", image=sources[5]))
  page.all("#second label")[7].click()
  images = page.answer("/api/interpolate", first=sources[5], second=sources[7])["images"]
  page.wait_for(lambda: page.sources("#steps img") == images)


def test_samples_follow_temperature_and_seed_and_can_be_changed(browser, grey):
  page = Page(browser, grey)
  page.run("arguments[0].focus()", page.one("#temperature"))
  page.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
  images = page.answer("/api/sample", temperature=0.6, seed=0)["images"]
  page.wait_for(lambda: page.sources("#samples img") == images)
  page.one("#draw").click()
  images = page.answer("/api/sample", temperature=0.6, seed=1)["images"]
  page.wait_for(lambda: page.sources("#samples img") == images)
  page.all("#samples button")[2].click()
  page.wait_until_shown("original", page.answer("/api/image", image=images[2]))
  assert page.focused().accessible_name == "Sample 3" and page.focused().is_selected()
  assert len(page.all("#first [type=radio]")) == 13


def test_files_are_opened_or_refused_with_a_message(browser, grey, tmp_path):
  page = Page(browser, grey)
  error, file = page.one("#error"), page.one("#first-file")
  (tmp_path / "letter.png").write_text("Dear madam,")
  with open(tmp_path / "large.png", "wb") as large:
    large.truncate(serve.MAX_FILE_BYTES + 1)
  file.send_keys(str(tmp_path / "letter.png"))
  page.wait_for(lambda: "The file must be an image" in error.text)
  file.send_keys(str(tmp_path / "large.png"))
  page.wait_for(lambda: "The file must have at most 20 MB" in error.text)
  assert len(page.all("#first [type=radio]")) == 12
  image_files.save(tmp_path / "photo.jpg", image_files.pixels(40, 30, 3))
  file.send_keys(str(tmp_path / "photo.jpg"))
  opened = page.wait_for(lambda: page.sources("#first img[alt='photo.jpg']"))
  page.wait_until_shown("original", page.answer("/api/image", image=opened[0]))
  assert not error.is_displayed() and len(page.sources("#second img")) == 12
  expected = serve.read_image((tmp_path / "photo.jpg").read_bytes(), served_models.GREY_SHAPE)
  assert opened[0] == serve.to_data_url(expected)


def test_server_that_does_not_answer_is_told(browser, grey):
  page = Page(browser, grey)
  browser.set_network_conditions(offline=True, latency=0, throughput=0)
  try:
    page.one("#draw").click()
    page.wait_for(lambda: page.one("#error").text == "The server does not answer.")
    page.one("#close").click()
    assert not page.one("#error").is_displayed() and not page.one("#close").is_displayed()
  finally:
    browser.delete_network_conditions()
  page.one("#draw").click()
  images = page.answer("/api/sample", temperature=0.7, seed=2)["images"]
  page.wait_for(lambda: page.sources("#samples img") == images)


@pytest.mark.parametrize("width, height", [(360, 640), (320, 480), (1100, 800)])
def test_nothing_is_wider_than_the_screen(browser, grey, width, height):
  page = Page(browser, grey, width, height)
  page.wait_for(lambda: page.source("#edited"))
  assert page.run("return document.documentElement.scrollWidth") <= width
  # What the strip of images hides can be scrolled to.
  rectangles = page.run("""
      return [...document.querySelectorAll("main *:not(fieldset .tiles *)")].map((e) => e.getBoundingClientRect())
          .filter((r) => r.width).map((r) => [r.left, r.right])""")
  assert len(rectangles) > 50 and all(0 <= left <= right <= width for left, right in rectangles)
  heights = page.run("""
      return [...document.querySelectorAll("main input:not([type=file]), main button, main select")]
          .map((e) => e.getBoundingClientRect().height).filter((height) => height)""")
  assert len(heights) > 40 and min(heights) >= 36  # A finger.


def test_class_is_chosen_and_all_goes_with_it(browser, colour, tmp_path):
  page = Page(browser, colour)
  assert not page.all("#first [type=radio], #sliders input") and not page.one("#reset").is_displayed()
  assert page.one("#label").accessible_name == "Class"
  image_files.save(tmp_path / "wide.png", image_files.pixels(*served_models.COLOUR_SHAPE))
  page.one("#first-file").send_keys(str(tmp_path / "wide.png"))
  opened = page.wait_for(lambda: page.sources("#first img"))[0]
  in_class = [page.answer("/api/image", image=opened, label=label) for label in (0, 2)]
  assert in_class[0]["bits_per_dim"] != in_class[1]["bits_per_dim"]
  page.wait_until_shown("original", in_class[0])
  page.run("arguments[0].focus()", page.one("#label"))
  page.press("f")  # The fox.
  page.wait_until_shown("original", in_class[1])
  images = page.answer("/api/sample", temperature=0.7, seed=0, label=2)["images"]
  page.wait_for(lambda: page.sources("#samples img") == images)


def test_context_is_picked_or_opened_and_all_goes_with_it(browser, conditional, tmp_path):
  page = Page(browser, conditional)
  image, contexts = page.sources("#first img")[0], page.sources("#context img")
  given = [page.answer("/api/image", image=image, context=context) for context in contexts]
  assert len(given) == 2 and given[0]["bits_per_dim"] != given[1]["bits_per_dim"]
  page.wait_until_shown("original", given[0])
  page.all("#context [type=radio]")[1].click()
  page.wait_until_shown("original", given[1])
  image_files.save(tmp_path / "photo.jpg", image_files.pixels(40, 30, 3))
  page.one("#context-file").send_keys(str(tmp_path / "photo.jpg"))
  opened = page.wait_for(lambda: page.sources("#context img[alt='photo.jpg']"))[0]
  page.wait_until_shown("original", page.answer("/api/image", image=image, context=opened))
  images = page.answer("/api/sample", temperature=0.7, seed=0, context=opened)["images"]
  page.wait_for(lambda: page.sources("#samples img") == images)
  assert not page.one("#error").is_displayed()
