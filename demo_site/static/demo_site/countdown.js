"use strict";

// The page says how long the access token is good without this, too: a script only keeps it current.
const expiry = document.querySelector("[data-expires-at]");
if (expiry) {
  const expiresAt = Date.parse(expiry.dataset.expiresAt);
  const left = expiry.querySelector(".left");
  const show = () => {
    const seconds = Math.max(0, Math.ceil((expiresAt - Date.now()) / 1000));
    const minutes = Math.floor(seconds / 60);
    left.textContent = seconds ? `${minutes}:${String(seconds % 60).padStart(2, "0")} left` : "expired";
    expiry.classList.toggle("over", seconds === 0);
    if (seconds) setTimeout(show, 250);
  };
  expiry.classList.add("live");
  show();
}
