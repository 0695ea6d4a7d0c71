"use strict";

// A field may be called "submit" and hide the form's own method: the prototype's is called instead.
const form = document.querySelector("form.oidc-landing");
if (form) {
  HTMLFormElement.prototype.submit.call(form);
}
