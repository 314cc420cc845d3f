// Search and filters of the gallery: hides the cards that do not match.
const cards = [...document.querySelectorAll(".card")];
if (cards.length) {
  const text = document.getElementById("text");
  const layout = document.getElementById("layout");
  const family = document.getElementById("family");
  const update = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      const data = card.dataset;
      card.hidden = !(
        words.every((word) => data.text.includes(word)) &&
        (!layout.value || data.layout.split(" ").includes(layout.value)) &&
        (!family.value || data.family === family.value)
      );
      shown += !card.hidden;
    }
    document.getElementById("count").textContent = `${shown} of ${cards.length}`;
    document.getElementById("none").hidden = shown > 0;
  };
  for (const control of [text, layout, family]) control.addEventListener("input", update);
  update();
}
