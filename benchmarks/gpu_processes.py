"""Runs the parts of `gpu.py` in processes that may hang, crash or fail, within the time budget."""

import concurrent.futures
import contextlib
import json
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import time

WORKER = pathlib.Path(__file__).parent / "gpu_worker.py"
# An entry may end this many seconds after the time of its part.
GRACE = 20.
_NO_ENTRY = "between entries"


class Run:
  """Runs processes, collects their results, and keeps track of the time that is left."""

  def __init__(self, found, options, budget, limit, write):
    """Creates it.

    Args:
      found: Dict with "machine" and "sections", to which the results are added.
      options: Dict of options of `gpu_worker.py`.
      budget: Seconds in all.
      limit: Seconds of one entry.
      write: Function without arguments, called after each change of `found`.
    """
    self.start = time.monotonic()
    self._found = found
    self._options = options
    self._end = self.start + budget
    self._limit = limit
    self._write = write
    self._lock = threading.RLock()
    self._running = set()
    self._is_stopped = False

  def stage(self, processes, seconds, end):
    """Runs processes side by side.

    Args:
      processes: List of lists of parts that share a process: section, name of the part, seconds.
      seconds: Seconds of the stage; those of the parts of each process are scaled to them.
      end: Seconds after the start at which the stage should end. It gets its own seconds in any case, if the budget
        has them.
    """
    end = min(max(self.start + end, time.monotonic() + seconds), self._end)
    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
      futures = [pool.submit(self._parts, parts, end) for parts in processes]
      try:
        for future in concurrent.futures.as_completed(futures):
          future.result()
      except BaseException:  # Also Ctrl-C: nothing is restarted.
        self._stop()
        raise

  def _stop(self):
    with self._lock:
      self._is_stopped = True
      for process in list(self._running):
        process.kill()

  def _parts(self, parts, end):
    """Runs parts in one process. If an entry breaks it, the rest runs in another process without that entry."""
    begin, all_seconds = time.monotonic(), sum(seconds for *_, seconds in parts)
    deadlines, done, seconds_before = {}, {}, 0.
    with self._lock:
      for section, part, seconds in parts:
        seconds_before += seconds
        deadlines[part] = begin + max(end - begin, 0.) * seconds_before / all_seconds
        done[part] = []
        self._found["sections"].setdefault(section, {"rows": {}, "notes": []})
    sections, begun = {part: section for section, part, _ in parts}, set()
    while time.monotonic() < end - 3.:
      broken = self._process(sections, deadlines, done, begun)
      if broken is None:
        break
    for part, section in sections.items():
      if part not in begun:
        self._note(section, f"{part} left out, for lack of time")
    self._write_now()

  def _process(self, sections, deadlines, done, begun):
    """Runs parts in a process; returns the part that broke it, or `None` if another process is not needed."""
    options = {**self._options, "done": done,
               "parts": {part: deadline - time.monotonic() for part, deadline in deadlines.items()}}
    part, entry, problem = next(iter(sections)), _NO_ENTRY, None
    with tempfile.TemporaryFile("w+", errors="replace") as log, self._begun(options, log) as process:
      lines = queue.Queue()
      threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
      while True:
        left = min(self._limit, max(deadlines[part], time.monotonic()) + GRACE - time.monotonic(),
                   self._end + 5. - time.monotonic())
        try:
          line = lines.get(timeout=max(left, 1.))
        except queue.Empty:
          problem = f"ended after {left:.0f} s"
          break
        if line is None:
          break
        message = json.loads(line)
        part = message.get("part", part)
        entry = message.get("begin", _NO_ENTRY)
        begun.add(part)
        self._take(part, sections[part], message, done)
      if problem is None:  # The process has closed its output, and is about to end.
        with contextlib.suppress(subprocess.TimeoutExpired):
          process.wait(10.)
      process.kill()
      code = process.wait()
      if self._is_stopped or problem is None and code == 0:
        return None
      log.seek(0)
      tail = " / ".join(line for line in log.read().splitlines()[-3:])[-400:]
      self._note(sections[part], f"{part}, {entry}: {problem or f'ended with {code}: {tail}'}")
      done[part].append(entry)
      begun.add(part)
      return None if entry == _NO_ENTRY else part

  @contextlib.contextmanager
  def _begun(self, options, log):
    """A context with a process, which is killed at the end."""
    with self._lock:
      if self._is_stopped:
        raise KeyboardInterrupt
      process = subprocess.Popen([sys.executable, str(WORKER), json.dumps(options)], stdout=subprocess.PIPE, stderr=log,
                                 text=True, errors="replace")
      self._running.add(process)
    try:
      with process:
        try:
          yield process
        finally:
          process.kill()
    finally:
      with self._lock:
        self._running.discard(process)

  def _take(self, part, section, message, done):
    """Adds a message of a process to the results."""
    with self._lock:
      rows = self._found["sections"][section]["rows"]
      if "machine" in message:
        self._found["machine"].update(message["machine"])
      if "begin" in message:
        print(f"  {time.monotonic() - self.start:5.0f} s  {part}, {message['begin']}", file=sys.stderr, flush=True)
      if "end" in message:
        for row, columns in message["rows"].items():
          rows.setdefault(row, {}).update(columns)
        done[part].append(message["end"])
      for note in message.get("notes", []):
        self._note(section, f"{part}, {message['end']}: {note}" if "end" in message else f"{part}: {note}")
      self._write_now()

  def _note(self, section, note):
    with self._lock:
      notes = self._found["sections"][section]["notes"]
      if note not in notes:  # A restarted process repeats what it leaves out.
        notes.append(note)
        print(f"      {note}", file=sys.stderr, flush=True)

  def _write_now(self):
    with self._lock:
      self._write()


def _read(stream, lines):
  for line in stream:
    if line.startswith("{"):
      lines.put(line)
  lines.put(None)
