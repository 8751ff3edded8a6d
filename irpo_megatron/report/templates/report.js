// The sample browser. What models wrote reaches the page as text nodes only, never as markup.
(() => {
  "use strict";
  const CARDS_A_TIME = 10;
  const OPEN_BELOW = 1000; // characters: longer texts start folded
  const VERDICTS = {
    right: "✓ right",
    wrong: "✗ wrong",
    unparsable: "? no answer found",
    ungraded: "? ungraded, counts as wrong",
    unscored: "not scored",
  };
  const byId = (id) => document.getElementById(id);
  const cards = JSON.parse(byId("sample-data").textContent);
  const filters = byId("filters");
  const list = byId("cards");
  const more = byId("more");
  let matches = [];
  let shown = 0;

  const element = (tag, className, ...children) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children);
    return node;
  };

  const number = (value) => value.toLocaleString("en");
  const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
  const contains = (text, wanted) => (text.head + (text.tail || "")).toLowerCase().includes(wanted);
  const size = (text) => text.head.length + (text.tail || "").length;

  const body = (text) => {
    const pre = element("pre", "");
    if (!text.head) {
      pre.append(element("span", "left-out", "empty"));
      return pre;
    }
    pre.append(text.head);
    if (text.left_out) {
      pre.append(element("span", "left-out", `${number(text.left_out)} characters left out here`), text.tail);
    }
    return pre;
  };

  const folded = (className, text, ...summary) => {
    const details = element("details", className, element("summary", "", ...summary), body(text));
    details.open = size(text) <= OPEN_BELOW;
    return details;
  };

  const about = (card, completion) => {
    const parts = [completion.iteration === 0 ? "base model" : `iteration ${completion.iteration}`];
    parts.push(card.kind === "test" ? "greedy" : `sample ${completion.index}`);
    if (completion.answer !== undefined) parts.push(`answer ${completion.answer}`);
    if (completion.truncated) parts.push("cut off at the limit");
    const use = completion.use || {};
    if (use.chosen) parts.push(`chosen in ${plural(use.chosen, "pair")}`);
    if (use.rejected) parts.push(`rejected in ${plural(use.rejected, "pair")}`);
    return parts.join(" · ");
  };

  const asCard = ({ card, completions }) => {
    const head = element("div", "card-head", element("h3", "", card.id), element("span", "aside", card.kind));
    if (card.gold !== null) head.append(element("span", "aside", `gold answer ${card.gold}`));
    const prompt = folded("prompt", card.prompt, element("span", "aside", "prompt"));
    return element("li", "", head, prompt, ...completions.map((completion) =>
      folded(`completion ${completion.verdict}`, completion.text,
        element("span", "verdict", VERDICTS[completion.verdict]), " ",
        element("span", "aside", about(card, completion)))));
  };

  const showMore = () => {
    const first = shown;
    shown = Math.min(shown + CARDS_A_TIME, matches.length);
    list.append(...matches.slice(first, shown).map(asCard));
    more.hidden = shown === matches.length;
    more.textContent = `Show ${Math.min(CARDS_A_TIME, matches.length - shown)} more of ${matches.length - shown}`;
  };

  const search = () => {
    const wanted = Object.fromEntries(new FormData(filters));
    const text = wanted.text.trim().toLowerCase();
    matches = cards
      .filter((card) => !wanted.kind || card.kind === wanted.kind)
      .map((card) => {
        const inPrompt = !text || card.id.toLowerCase().includes(text) || contains(card.prompt, text);
        return { card, completions: card.completions.filter((completion) =>
          (!wanted.iteration || completion.iteration === Number(wanted.iteration)) &&
          (!wanted.verdict || completion.verdict === wanted.verdict) &&
          (inPrompt || contains(completion.text, text))) };
      })
      .filter(({ completions }) => completions.length > 0);
    const completions = matches.reduce((sum, match) => sum + match.completions.length, 0);
    byId("count").textContent = matches.length
      ? `${plural(matches.length, "problem")}, ${plural(completions, "completion")}`
      : "Nothing matches. Widen the filter.";
    list.replaceChildren();
    shown = 0;
    showMore();
  };

  filters.addEventListener("input", search);
  filters.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    const next = shown;
    showMore();
    // The button may vanish under the keyboard's focus: go on at the first new card.
    const target = list.children[next];
    target.tabIndex = -1;
    target.focus();
  });
  byId("browser").hidden = false;
  search();
})();
