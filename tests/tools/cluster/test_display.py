"""What a person sees: the terminal and the contact sheet."""

from __future__ import annotations

import pytest

from tools.cluster import sheet
from tools.cluster.display import Display, duration, seconds_left
from tools.cluster.drive import Attempts, Driver, Lost
from tools.cluster.jobs import Job
from tools.cluster.ledger import DoneJob, ResultFile
from tools.cluster.simulation import fake_jobs


@pytest.fixture
def driver():
    """Four jobs: one done in 100 s, one that runs for 40 s, two waiting; one host."""
    made = Driver(fake_jobs(3), None, None, clock=lambda: 140.0)
    made.running["gpu1.0"] = made.waiting.popleft()
    made.running["gpu1.0"].started = 100.0
    made.seconds, made.present = [100.0], {"gpu1.0": "gpu1.0"}
    return made


def test_one_line_for_all_jobs_and_one_for_each_host(driver):
    display = Display(before=5, step_of={"gpu1.0": "Sample 3 of 30"}.get, starting=lambda: 2)
    first, second = display.lines(driver)
    assert first == "6 of 9 done, 1 running, 2 waiting, 2 hosts starting, about 4 min 20 s left"
    assert second.split() == "gpu1.0 Sample 3 of 30 40 s 00001 a cloudy lake at dusk, number 1".split()


def test_many_hosts_take_few_lines(driver):
    driver.running |= {f"host{number}": Attempts(job) for number, job in enumerate(fake_jobs(99))}
    lines = Display(0, lambda host: "", lambda: 0).lines(driver)
    assert len(lines) == 14 and lines[-1] == "  and 88 more hosts"


def test_failures_and_lost_hosts_are_said_once(driver, capsys):
    display = Display(0, lambda host: "", lambda: 0)
    driver.failures.append((fake_jobs(1)[0], "no such\x1b[2J codec"))
    driver.lost_hosts.append(Lost("gpu7.0", "killed"))
    for _ in range(3):
        display(driver)
    printed = capsys.readouterr().out
    assert printed.count("FAILED") == printed.count("LOST    host gpu7.0: killed") == 1
    assert r"no such\x1b[2J codec" in printed and "\x1b" not in printed


def test_no_time_left_is_told_before_the_first_job_is_done(driver):
    driver.seconds.clear()
    assert seconds_left(driver) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7260, "2 h 1 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def results(tmp_path):
    """A folder with a video and a file that is none, the jobs and what is done."""
    import av
    import numpy as np

    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10, width=64, height=48, pix_fmt="bgr0")
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 200, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (tmp_path / "b.mp4").write_bytes(b"no video")
    jobs = [Job(n, f"{n:064x}", f"<script>{n}</script>", None, 7, None) for n in (1, 2, 3)]
    files = {1: ("side.json", "a.mkv"), 2: ("b.mp4",)}
    done = {
        jobs[n - 1].id: DoneJob(jobs[n - 1].id, "gpu<1>", 12.3, tuple(ResultFile(name, 1, "") for name in names))
        for n, names in files.items()
    }
    return tmp_path, jobs, done


def test_the_sheet_has_a_thumbnail_and_the_values_of_each_video(results):
    folder, jobs, done = results
    page = sheet.write(folder, jobs, done, [(jobs[2], "no <such> codec \udcff")])
    text = page.read_text(encoding="utf-8")
    assert text.count("<figure>") == 2 and text.count("<img") == 1 and "2 of 3 done" in text
    assert "&lt;script&gt;1&lt;/script&gt;" in text and "<script>" not in text
    assert "1, seed 7, gpu&lt;1&gt;, 12 s" in text and "no &lt;such&gt; codec" in text
    assert (folder / sheet.THUMBNAILS / f"{jobs[0].id}.jpg").read_bytes()[:2] == b"\xff\xd8"


def test_a_result_with_sound_alone_has_a_link_and_no_thumbnail(results):
    import av
    import numpy as np

    folder, jobs, done = results
    with av.open(str(folder / "b.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    text = sheet.write(folder, jobs, done, []).read_text(encoding="utf-8")
    assert text.count("<img") == 1 and ">b.mp4</a>" in text


def test_the_sheet_replaces_itself_and_no_other_page(results):
    folder, jobs, done = results
    page = sheet.write(folder, jobs, {}, [])
    assert "0 of 3 done" in page.read_text()
    assert "2 of 3 done" in sheet.write(folder, jobs, done, []).read_text()
    page.write_text("mine")
    assert sheet.write(folder, jobs, done, []).read_text() == "mine"
