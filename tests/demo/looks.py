"""What can be told of a page's accessibility by asking the browser."""

from playwright.sync_api import Page

# Colours come back in several notations; a canvas turns each into bytes. Backgrounds that are
# images cannot be asked for their colour, so texts upon them are left out.
_PROBLEMS = """() => {
  const problems = [];
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => {
      c /= 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const background = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const style = getComputedStyle(e);
      if (style.backgroundImage !== "none") return null;
      const colour = rgba(style.backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };

  if (!document.documentElement.lang) problems.push("no lang");
  if (!document.title) problems.push("no title");
  if (document.querySelectorAll("h1").length !== 1) problems.push("not one h1");
  if (document.querySelectorAll("main").length !== 1) problems.push("not one main");
  const sideways = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  if (sideways > 0) problems.push(`scrolls sideways by ${sideways}px`);

  for (const image of document.images) {
    if (!image.hasAttribute("alt")) problems.push("image without alt");
    if (!image.complete || !image.naturalWidth) problems.push("image not shown");
  }
  for (const svg of document.querySelectorAll("svg")) {
    if (svg.getAttribute("aria-hidden") !== "true" && !svg.hasAttribute("aria-label"))
      problems.push("svg neither hidden nor named");
  }
  for (const input of document.querySelectorAll("input:not([type=hidden])")) {
    if (!input.labels.length) problems.push(`no label for ${input.name}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  if (new Set(ids).size < ids.length) problems.push("an id twice");
  for (const target of document.querySelectorAll("a, button")) {
    const box = target.getBoundingClientRect();
    const inText = getComputedStyle(target).display === "inline";
    if (!target.innerText.trim()) problems.push("a link or button without a name");
    if (!inText && box.height < 24) problems.push(`${target.innerText} is ${box.height}px high`);
  }
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !element.checkVisibility({visibilityProperty: true})) continue;
    const behind = background(element);
    if (!behind) continue;
    const style = getComputedStyle(element);
    const [light, dark] = [luminance(rgba(style.color)), luminance(behind)].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) problems.push(`contrast ${ratio.toFixed(2)}: ${text}`);
  }
  return problems;
}"""


def problems_of(page: Page) -> list[str]:
    """Return what is wrong with the page: WCAG 2.2 AA, as far as a program sees it."""
    problems: list[str] = page.evaluate(_PROBLEMS)
    return problems
