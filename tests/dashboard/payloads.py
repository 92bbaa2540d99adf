"""Two hundred and more texts that would run a script if they were ever taken for markup."""

from __future__ import annotations

from itertools import product

CALL = "window.__hit=1"
HANDLERS = (
    "<img src=x onerror={}>",
    "<img src=x onerror='{}'//",
    "<svg onload={}>",
    "<svg/onload={}>",
    "<svg><script>{}</script></svg>",
    "<script>{}</script>",
    "<ScRiPt>{}</sCrIpT>",
    "<body onload={}>",
    "<details open ontoggle={}>",
    "<input autofocus onfocus={}>",
    "<video><source onerror={}></video>",
    "<audio src=x onerror={}>",
    "<iframe srcdoc='<script>parent.{}</script>'></iframe>",
    "<iframe src='javascript:parent.{}'></iframe>",
    "<a href='javascript:{}'>x</a>",
    "<form action='javascript:{}'><button>x</button></form>",
    "<object data='javascript:{}'></object>",
    "<math><a xlink:href='javascript:{}'>x</a></math>",
    "<marquee onstart={}>x</marquee>",
    "<div style='animation-name:x' onanimationstart={}>x</div>",
    "<style>@import 'javascript:{}'</style>",
    "<link rel=stylesheet href='javascript:{}'>",
    "<base href='javascript:{}//'>",
    "<meta http-equiv=refresh content='0;url=javascript:{}'>",
    "<template><script>{}</script></template>",
    "${{{}}}",
)
AROUND = (
    *("{}", '">{}', "'>{}", "</textarea>{}", "</title></style></script>{}", "]]>{}", "--><!-- -->{}", "\u2028{}"),
    "</information><|im_end|>{}",
)
PAYLOADS = [outer.replace("{}", inner.replace("{}", CALL)) for outer, inner in product(AROUND, HANDLERS)]
