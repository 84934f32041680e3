"use strict";
// Before there is anything to lay out: on screen, what is not near it is left out of styling, layout and painting, and
// so are the rows of long tables after the first 30, until page.js is asked for them. It stands here and not in
// page.css because a page without scripts has nobody to ask.
const lazily = new CSSStyleSheet();
lazily.replaceSync(`@media screen {
  .picture { content-visibility: auto; }
  .scroll.tall { content-visibility: auto; contain-intrinsic-height: auto calc(6rem + 3.3rem * var(--rows)); }
  .long > tbody:not(.published, .drawn) > tr:nth-child(n + 31) { display: none; }
}`);
document.adoptedStyleSheets = [lazily];
