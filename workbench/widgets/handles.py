"""Names for the handles of sliders.

ipywidgets draws a slider's handles with their role and no name, so a screen reader says "slider"
and nothing else (axe-core: ``aria-input-field-name``, serious); it has no field for one. A script
beside the sliders calls each handle what its label says, those of a range from and to, and those
that are drawn later as well. Where scripts of outputs do not run, the label still stands beside it.
"""

from __future__ import annotations

from typing import Any

SCRIPT = """\
(() => {
  const name = () => {
    for (const slider of document.querySelectorAll(".widget-slider")) {
      const label = slider.querySelector(".widget-label")?.textContent.trim();
      const handles = slider.querySelectorAll(".noUi-handle:not([aria-label])");
      if (!label || !handles.length) continue;
      const ends = handles.length > 1 ? [", from", ", to"] : [""];
      handles.forEach((handle, at) => { handle.ariaLabel = label + ends[at]; });
    }
  };
  name();
  window.workbenchHandles ??= new MutationObserver(name);
  window.workbenchHandles.observe(document.body, { childList: true, subtree: true });
})();
"""


def name_handles(shown: Any) -> None:
    """Name the handles of the page's sliders, now and later, if there is one in the widget."""
    from IPython.display import display

    if has_slider(shown):
        display({"application/javascript": SCRIPT, "text/plain": ""}, raw=True)


def has_slider(widget: Any) -> bool:
    """Whether the widget is a slider, or a box with one."""
    inside = getattr(widget, "children", ())
    return "Slider" in type(widget).__name__ or any(has_slider(each) for each in inside)
