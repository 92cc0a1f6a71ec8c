"""Pictures: they render, show every point, and are not distorted; the demonstration runs."""

import io
import sys

import numpy as np
import pytest
from conftest import small

import dsb

matplotlib = pytest.importorskip("matplotlib")

from dsb import demo, plot  # noqa: E402


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    return file.getvalue()


def clipped(ax, points):
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    inside = (points > [x0, y0]) & (points < [x1, y1])
    return not inside.all()


def bridge_in(d):
    rng = np.random.default_rng(d)
    x = rng.normal(size=(200, d)) * (np.arange(d) == 0) * 3 + rng.normal(size=(200, d))
    bridge = small(x, x[::-1] + 1, schedule=dsb.Schedule.constant(5, 0.1))
    bridge.fit(1, 20, progress=False)
    return bridge


def test_marginals(trained):
    shot = plot.snapshot(trained, 300)
    figure = plot.marginals([shot, shot], columns=4)
    axes = np.reshape(figure.axes, (4, 4))
    assert png(figure).startswith(b"\x89PNG")
    for row, points in zip(axes, [shot.backward[:, ::-1], shot.forward] * 2, strict=True):
        for ax, k in zip(row, [0, 1, 3, 4], strict=True):
            shown = ax.collections[0].get_offsets()
            np.testing.assert_allclose(shown, points[:, k])
            assert not clipped(ax, shown)
            assert ax.get_aspect() == 1
    assert [ax.get_title() for ax in axes[0]] == [
        "t = 0, source",
        "t = 0.3",
        "t = 1.5",
        "t = 3, prior",
    ]
    assert "backward" in axes[0, 0].get_ylabel()
    assert "forward" in axes[1, 0].get_ylabel()
    assert "IPF 1" in axes[1, 0].get_ylabel()
    colours = {tuple(ax.collections[0].get_facecolor()[0]) for ax in figure.axes}
    assert len(colours) == 2


def test_trajectories(trained):
    paths = trained.paths(12)
    figure = plot.trajectories(paths)
    (ax,) = figure.axes
    assert png(figure)
    assert ax.get_aspect() == 1
    assert not clipped(ax, paths.reshape(-1, 2))
    lines = [line.get_xydata() for line in ax.lines]
    np.testing.assert_allclose(lines[3], paths[3])
    np.testing.assert_allclose(lines[-2], paths[:, 0])
    np.testing.assert_allclose(lines[-1], paths[:, -1])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["start", "end"]


@pytest.mark.parametrize("d", [1, 3, 6])
def test_other_dimensions(d):
    bridge = bridge_in(d)
    figures = [plot.marginals(bridge, columns=3), plot.trajectories(bridge.paths(5))]
    assert all(map(png, figures))
    assert figures[0]._repr_png_().startswith(b"\x89PNG")
    if d == 1:
        png(plot.trajectories(bridge.paths(5), times=bridge.schedule.times))
        assert figures[0].axes[0].get_ylabel().endswith("density")
        return
    for figure in figures:
        assert "PC 1 (" in figure.axes[-1].get_xlabel()
        assert all(ax.get_aspect() == 1 for ax in figure.axes)
    figure = plot.marginals(bridge, columns=2, view="first")
    assert figure.axes[-1].get_xlabel() == f"$x_1$ of {d}"


def test_projection_finds_what_varies():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 5)) @ np.diag([0.1, 3, 0.1, 1, 0.1])
    project = plot.projection(x)
    np.testing.assert_allclose(np.abs(project.basis), np.eye(5)[:, [1, 3]], atol=0.05)
    assert project.labels[0] == "PC 1 (90 %)"
    np.testing.assert_allclose(project(x).mean(axis=0), 0, atol=1e-12)


def test_refusals(trained):
    with pytest.raises(TypeError, match="bridge: expected a Bridge"):
        plot.marginals([])
    with pytest.raises(TypeError, match="bridge: expected a Bridge"):
        plot.marginals([1])
    with pytest.raises(ValueError, match="columns: "):
        plot.marginals(trained, columns=1)
    with pytest.raises(ValueError, match=r"paths: .*\(3, 2\)"):
        plot.trajectories(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"view: .*'pca'.*did you mean"):
        plot.trajectories(np.zeros((3, 2, 4)), view="pc")
    with pytest.raises(ValueError, match=r"times: expected shape \(2,\)"):
        plot.trajectories(np.zeros((3, 2, 1)), times=[1.0])


def test_images():
    x = dsb.datasets.images("shapes", 23, size=8)
    scaled = (x * np.float32(2 / 255) - 1).astype(np.float32)
    sheets = []
    for given in (x, scaled, np.repeat(scaled, 3, axis=1)):
        figure = plot.images(given, columns=10)
        assert png(figure).startswith(b"\x89PNG")
        sheets.append(np.asarray(figure.axes[0].images[0].get_array(), np.float64))
    assert sheets[0].shape == (3 * 9 - 1, 10 * 9 - 1)
    np.testing.assert_allclose(sheets[0][:8, 9:17], x[1, 0] / 255.0)
    np.testing.assert_allclose(sheets[0][18:, 18:26], x[22, 0] / 255.0)
    np.testing.assert_allclose(sheets[1], sheets[0], atol=1e-6)
    np.testing.assert_allclose(sheets[2], np.repeat(sheets[0][:, :, None], 3, axis=2), atol=1e-6)
    bridge = small(x, schedule=dsb.Schedule.constant(9, 0.01))
    paths = bridge.paths(4, direction="forward")
    sheet = plot.images(paths, columns=4).axes[0].images[0].get_array()
    assert sheet.shape == (4 * 9 - 1, 4 * 9 - 1)
    last = np.clip((paths[1, -1, 0] + 1) / 2, 0, 1)
    np.testing.assert_allclose(sheet[9:17, 27:], last, atol=1e-6)
    assert png(plot.trajectories(paths)).startswith(b"\x89PNG")
    bridge.fit(1, 3, progress=False)
    assert png(plot.marginals(bridge, columns=2)).startswith(b"\x89PNG")
    for wrong in (x[0], x[:0], np.repeat(x, 2, axis=1)):
        with pytest.raises(ValueError, match=r"x: expected shape \(n, c, h, w\)"):
            plot.images(wrong)
    with pytest.raises(TypeError, match="x: expected floats or bytes"):
        plot.images(x.astype(int))


def test_many_coordinates():
    """The main axes come from products of points, and are the same."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(1500, 2)))[0]
    points = rng.normal(size=(3000, 2)) * [5.0, 3.0] @ axes.T + 0.01 * rng.normal(size=(3000, 1500))
    found = plot.projection(points)
    np.testing.assert_allclose(np.abs(found.basis.T @ axes), np.eye(2), atol=0.15)
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(2), atol=1e-9)


def test_without_matplotlib(monkeypatch):
    monkeypatch.delitem(sys.modules, "dsb.plot")
    monkeypatch.delattr(dsb, "plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'schrodinger-bridge\[plot\]'"):
        dsb.plot.marginals  # noqa: B018


def test_demo(tmp_path, capsys):
    assert demo.main(["--ipf", "2", "--steps", "20", "--out", str(tmp_path / "a")]) == 0
    told = capsys.readouterr().out
    for part in ("Swiss roll", "N = 20", "T = 5", "IPF iteration 2", "floor", "demo-marginals.png"):
        assert part in told, part
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["demo-marginals.png", "demo-paths.png"]


def test_demo_on_files(tmp_path, capsys):
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(300, 3)) * 100, rng.normal(size=(200, 3)) * 100 + 500
    np.save(tmp_path / "a.npy", source)
    np.savez(tmp_path / "b.npz", target)
    out = tmp_path / "out"
    arguments = ["--source", str(tmp_path / "a.npy"), "--target", str(tmp_path / "b.npz")]
    assert demo.main([*arguments, "--ipf", "3", "--steps", "300", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "before" in told
    names = ["demo-transport-marginals.png", "demo-transport-paths.png", "demo-transported.npy"]
    assert sorted(path.name for path in out.iterdir()) == names
    moved = np.load(out / "demo-transported.npy")
    assert moved.shape == source.shape
    # In the files' own units, and on the way to the target.
    assert np.linalg.norm(moved.mean(axis=0) - 500) < 0.7 * np.linalg.norm(
        source.mean(axis=0) - 500
    )


def test_demo_draws_files_in_their_own_units(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    source = rng.normal(size=(300, 2)) * 100
    np.save(tmp_path / "a.npy", source)
    np.save(tmp_path / "b.npy", (rng.normal(size=(200, 2)) * 100 + 500).astype(np.int64))
    drawn = {}
    for name in ("marginals", "trajectories"):
        real = getattr(plot, name)

        def draw(*args, real=real, name=name, **keywords):
            drawn[name] = real(*args, **keywords)
            return drawn[name]

        monkeypatch.setattr(plot, name, draw)
    arguments = ["--source", str(tmp_path / "a.npy"), "--target", str(tmp_path / "b.npy")]
    assert demo.main([*arguments, "--ipf", "1", "--steps", "20", "--out", str(tmp_path)]) == 0
    first, *_, last = drawn["marginals"].axes[:6]
    assert first.get_title() == "t = 0, source"
    assert last.get_title().endswith(", target")
    assert float(last.get_title().split()[2].rstrip(",")) > 100
    forward = drawn["marginals"].axes[6].collections[0].get_offsets()
    np.testing.assert_allclose(forward.mean(axis=0), source.mean(axis=0), atol=20)
    np.testing.assert_allclose(forward.std(axis=0), source.std(axis=0), rtol=0.2)
    starts = drawn["trajectories"].axes[0].lines[-2].get_xydata()
    assert np.abs(starts - source.mean(axis=0)).max() > 100


def test_demo_refuses(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.zeros((20, 2)))
    np.save(tmp_path / "b.npy", np.zeros((20, 3)))
    a, b, absent = (str(tmp_path / name) for name in ("a.npy", "b.npy", "c.npy"))
    objects, text, empty, archive = (str(tmp_path / name) for name in ("o.npy", "t", "e", "z"))
    np.save(objects, np.array([{}, None]), allow_pickle=True)
    (tmp_path / "t").write_text("1 2\n3 4\n")
    (tmp_path / "e").touch()
    (tmp_path / "z").write_bytes(b"PK\x03\x04" + bytes(9))
    for arguments, message in [
        (["--source", a, "--target", b], "expected 2 columns"),
        (["--source", a, "--target", a], "rows that differ"),
        (["--source", a, "--target", absent], "No such file"),
        *((["--source", f, "--target", a], f"{f}: ") for f in (objects, text, empty, archive)),
        (["--ipf", "0"], "--ipf"),
    ]:
        assert demo.main(arguments) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        demo.main(["--source", a])
    told = capsys.readouterr().err
    assert "--source and --target go together" in told
    assert "SOURCE=a.npy TARGET=b.npy" in told
