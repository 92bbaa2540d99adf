"""Figures: readable in both themes, and the surrogates' lines are the functions."""

import pytest

from agentrl.errors import ConfigError
from agentrl.lab.plots import SERIES, THEMES
from agentrl.lab.surrogates import plot_surrogates


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(a, b):
    """WCAG 2.2."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", THEMES)
def test_text_and_lines_stand_out(theme):
    colors = THEMES[theme]
    assert contrast(colors["fg"], colors["bg"]) >= 7.0
    assert all(contrast(c, colors["bg"]) >= 3.0 for c in (colors["good"], colors["bad"], *SERIES[theme][:6]))


@pytest.mark.slow
def test_surrogates_are_drawn_for_all_and_for_chosen_names(tmp_path):
    written = plot_surrogates(None, 4, tmp_path / "all")
    assert len(written) == 4 and all(p.stat().st_size > 5_000 for p in written)
    text = plot_surrogates(["grpo", "pos_only"], 1, tmp_path / "two")[1].read_text()
    assert text.startswith("<?xml")


@pytest.mark.slow
def test_a_curve_on_top_of_another_is_dashed(tmp_path):
    def dashed(*names):
        text = plot_surrogates(names, 1, tmp_path / "-".join(names))[1].read_text()
        return text.count("stroke-dasharray")

    # weights of pos_only and grpo are one curve, in the plot and in its legend; surrogates of rloo and dr_grpo, too
    alone, together = dashed("grpo", "skew_r"), dashed("grpo", "pos_only")
    assert together == alone + 2
    assert dashed("rloo", "dr_grpo") == alone + 4


def test_names_that_do_not_exist_and_k_below_one_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'grpo'"):
        plot_surrogates(["gpro"], 4, tmp_path / "x")
    with pytest.raises(ConfigError, match=r"k is 0.*1 or more"):
        plot_surrogates(None, 0, tmp_path / "x")
    assert not list(tmp_path.iterdir())
