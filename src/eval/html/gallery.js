"use strict";
// Sorts and filters each gallery. #sort=low&show=errors in the address sets all of them.
const orders = {
  high: (a, b) => b.dataset.score - a.dataset.score,
  low: (a, b) => a.dataset.score - b.dataset.score,
  name: (a, b) => a.dataset.name < b.dataset.name ? -1 : 1,
  kind: (a, b) => a.dataset.kind === b.dataset.kind
    ? b.dataset.score - a.dataset.score : a.dataset.kind < b.dataset.kind ? -1 : 1,
};
const filters = {
  all: () => true,
  errors: (tile) => "error" in tile.dataset,
  defects: (tile) => tile.dataset.kind !== "",
  goods: (tile) => tile.dataset.kind === "",
};
const galleries = [...document.querySelectorAll(".gallery")].map((gallery) => {
  const controls = gallery.querySelector("form");
  const tiles = gallery.querySelector(".tiles");
  const show = () => {
    const all = [...tiles.children].sort(orders[controls.elements.sort.value]);
    const wanted = filters[controls.elements.show.value];
    for (const tile of all) tile.hidden = !wanted(tile);
    tiles.append(...all);
    const shown = all.filter((tile) => !tile.hidden).length;
    controls.querySelector("output").value = shown + " of " + all.length;
  };
  controls.addEventListener("change", show);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.hidden = false;
  return { controls, show };
});
const follow = () => {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const { controls, show } of galleries) {
    const { sort, show: filter } = controls.elements;
    if (asked.get("sort") in orders) sort.value = asked.get("sort");
    if (asked.get("show") in filters) filter.value = asked.get("show");
    show();
  }
};
window.addEventListener("hashchange", follow);
follow();
