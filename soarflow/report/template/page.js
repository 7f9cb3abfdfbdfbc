const dialog = document.querySelector("dialog");
document.querySelector("main").addEventListener("click", (event) => {
  const picture = event.target.closest(".pictures img");
  if (!picture) return;
  const large = dialog.querySelector("img");
  large.src = picture.src;
  large.alt = picture.alt;
  large.className = picture.className;
  dialog.showModal();
});
dialog.addEventListener("click", () => dialog.close());
