"""The layout of the Customer.io sandbox's pages: header, style and automatic refresh."""

from html import escape

STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f5; --card: #fff; --line: #e4e7e3; --text: #16211d; --soft: #66726d;
  --accent: #0b6b57; --tint: #e5f3ee; --bad: #a4342a; --bad-tint: #fbeae8; }
@media (prefers-color-scheme: dark) { :root { --ground: #101513; --card: #181f1c; --line: #2a332f; --text: #e6ece9;
  --soft: #94a19b; --accent: #5fcdb0; --tint: #1d332c; --bad: #f0958c; --bad-tint: #3a2320; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
a:focus-visible, input:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
header, main { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
header { display: flex; flex-wrap: wrap; align-items: center; gap: 16px 32px; padding-top: 28px; padding-bottom: 20px; }
.brand { flex: 1 1 auto; color: inherit; display: flex; align-items: center; gap: 12px; }
.brand:hover { text-decoration: none; }
.brand b { display: block; font-size: 18px; line-height: 1.25; letter-spacing: -.01em; }
.mark { width: 36px; height: 36px; border-radius: 10px; background: var(--accent); display: grid; place-items: center; }
.mark::after { content: ""; width: 14px; height: 14px; border-radius: 50%; border: 4px solid var(--card); }
.soft { color: var(--soft); font-size: 13px; }
.totals { display: flex; gap: 32px; margin: 0; }
.totals div { display: flex; flex-direction: column-reverse; text-align: right; }
.totals dt { color: var(--soft); font-size: 13px; }
.totals dd { margin: 0; font-size: 22px; font-weight: 650; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; margin-bottom: 24px;
  overflow: hidden; }
.bar { display: flex; align-items: center; justify-content: space-between; gap: 16px; padding: 14px 20px;
  border-bottom: 1px solid var(--line); }
h1, h2 { margin: 0; font-size: 16px; font-weight: 650; overflow-wrap: anywhere; }
h1.title { font-size: 24px; letter-spacing: -.015em; line-height: 1.25; margin: 4px 0 2px; }
.crumb { margin-bottom: 20px; }
input { font: inherit; color: inherit; width: min(320px, 100%); padding: 7px 12px; border: 1px solid var(--line);
  border-radius: 8px; background: var(--ground); }
table { width: 100%; border-collapse: collapse; table-layout: fixed; }
th { text-align: left; font-weight: 500; font-size: 13px; color: var(--soft); padding: 10px 20px; }
td { padding: 11px 20px; border-top: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
.people td { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.people tbody tr:hover { background: var(--ground); }
.people td:first-child { font-weight: 550; }
.people .wide { width: 21%; } .people .count { width: 72px; } .people .when { width: 192px; }
.people th, .people td, .attributes th, .attributes td { padding-right: 0; }
.people .when, .people td:last-child { padding-right: 20px; }
.count { text-align: right; font-variant-numeric: tabular-nums; }
time { white-space: nowrap; font-variant-numeric: tabular-nums; color: var(--soft); font-size: 13px; }
.chip { display: inline-block; max-width: 100%; overflow: hidden; text-overflow: ellipsis; vertical-align: bottom;
  background: var(--tint); color: var(--accent); border-radius: 6px; padding: 1px 7px; margin-right: 4px;
  font-size: 12.5px; }
.chip.bad { background: var(--bad-tint); color: var(--bad); }
.chip.plain { background: none; color: var(--soft); padding: 1px 0; }
.empty { padding: 56px 24px; text-align: center; }
.empty p { margin: 4px 0 0; color: var(--soft); }
code { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.empty code { background: var(--tint); color: var(--accent); padding: 2px 6px; border-radius: 6px; }
.split { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 24px; align-items: start; }
.attributes td:first-child { color: var(--soft); } .attributes th:first-child { width: 27%; }
.attributes .when { width: 172px; }
ol { list-style: none; margin: 0; padding: 0; }
ol > li { border-top: 1px solid var(--line); padding: 11px 20px; }
ol > li:first-child { border-top: 0; }
summary, .line { display: flex; align-items: baseline; gap: 4px 10px; flex-wrap: wrap; }
summary { cursor: pointer; list-style: none; }
summary::-webkit-details-marker { display: none; }
summary::after { content: "+"; color: var(--soft); width: 10px; text-align: center; }
details[open] summary::after { content: "-"; }
.line::after { content: ""; width: 10px; }
.what { flex: 1 1 0; min-width: 120px; overflow-wrap: anywhere; }
pre { margin: 10px 0 2px; padding: 12px 14px; background: var(--ground); border-radius: 8px; white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 420px; overflow-y: auto; }
.pager { display: flex; justify-content: space-between; padding: 12px 20px; border-top: 1px solid var(--line); }
.stale { color: var(--bad); }
@media (max-width: 860px) { .split { grid-template-columns: minmax(0, 1fr); gap: 0; } }
@media (max-width: 720px) {
  header, main { padding-left: 16px; padding-right: 16px; }
  .totals { flex: 1 1 100%; justify-content: space-between; } .totals div { text-align: left; }
  .people thead { display: none; }
  .people tr { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 2px 12px; padding: 12px 16px;
    border-top: 1px solid var(--line); }
  .people td, .people td:last-child { border: 0; padding: 0; }
  .people td:nth-child(1) { grid-area: 1 / 1; } .people td:nth-child(5) { grid-area: 1 / 2; }
  .people td:nth-child(2) { grid-area: 2 / 1; } .people td:nth-child(6) { grid-area: 2 / 2; }
  .people td:nth-child(3) { grid-area: 3 / 1; } .people td:nth-child(4) { grid-area: 4 / 1 / 5 / 3; }
  .people td:empty { display: none; } .people td.count { width: auto; }
  .people .count::before { content: "Events "; color: var(--soft); font-size: 13px; }
  .people td:nth-child(6) { text-align: right; }
  .bar { padding: 12px 16px; } .bar form { flex: 1; } input { width: 100%; }
  .attributes thead { display: none; }
  .attributes tr { display: grid; grid-template-columns: minmax(0, 1fr) auto; padding: 9px 16px;
    border-top: 1px solid var(--line); }
  .attributes td { border: 0; padding: 0; } .attributes td:nth-child(2) { grid-area: 2 / 1 / 3 / 3; }
  ol > li { padding: 11px 16px; }
}
"""

# Only what changed is replaced, outside the search box; opened details stay open.
SCRIPT = """
const form = document.querySelector('form'), pulse = document.getElementById('pulse');
let waiting, latest = 0;
async function refresh() {
  const turn = ++latest;
  try {
    const answer = await fetch(location.href);
    const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html');
    if (turn !== latest) return;
    for (const old of document.querySelectorAll('[data-live]')) {
      const next = fresh.getElementById(old.id);
      const open = new Set([...old.querySelectorAll('details[open]')].map(shown => shown.id));
      if (!next) continue;
      next.querySelectorAll('details').forEach(shown => { shown.open = open.has(shown.id); });
      if (old.innerHTML !== next.innerHTML) old.replaceWith(next);
    }
    pulse.className = ''; pulse.textContent = 'refreshes by itself';
  } catch {
    pulse.className = 'stale'; pulse.textContent = 'the sandbox does not answer';
  }
}
form?.addEventListener('input', () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    history.replaceState(null, '', '/?' + new URLSearchParams(new FormData(form)));
    refresh();
  }, 150);
});
setInterval(() => document.hidden || refresh(), 3000);
"""


def in_layout(title: str, totals: dict[str, int], body: str) -> str:
    """Returns a page. title: text, which may be hostile; totals: for the header; body: HTML."""
    figures = "".join(f"<div><dt>{name.capitalize()}</dt><dd>{count:,}</dd></div>" for name, count in totals.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} · Customer.io sandbox</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>
<body><header><a class="brand" href="/"><span class="mark"></span><span><b>Customer.io sandbox</b>
<span class="soft">In memory on this machine · <span id="pulse">refreshes by itself</span></span></span></a>
<dl class="totals" id="totals" data-live>{figures}</dl></header>
<main>{body}</main><script>{SCRIPT}</script></body></html>
"""
