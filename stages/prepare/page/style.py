"""How the data report looks: light or dark as the reader's system is, from phone to desk."""

DARK = (
    "--bg:#14181d;--fg:#e4e8ed;--dim:#9aa5b1;--line:#2c343d;--soft:#1d232a;--train:#6c9fe0;--valid:#4672ac;"
    "--test:#2f4d75;--same:#59636e;--leak:#e5675b;--bad:#f0796d;--warn:#e0a34a;--info:#9aa5b1;--learned:#24402a;"
    "--mark:#e0a34a"
)
# Evidently's script puts the class light or dark on the page, and has a switch for it.
CSS = """
:root{--bg:#fff;--fg:#1c2430;--dim:#5a6675;--line:#dfe5ec;--soft:#f4f6f9;--train:#2f63a8;--valid:#6f9bd1;--test:#a9c4e6;
--same:#b9c0c9;--leak:#b42318;--bad:#b42318;--warn:#b36b00;--info:#5a6675;--learned:#dcebd9;--mark:#b36b00}
"""
CSS += f"@media (prefers-color-scheme:dark){{:root:not(.light){{{DARK}}}}}:root.dark{{{DARK}}}"
CSS += """
body{margin:0;background:var(--bg)}
.lathe{font:15px/1.5 system-ui,sans-serif;color:var(--fg);max-width:1180px;margin:0 auto;padding:28px 24px;
overflow-wrap:anywhere}
.lathe h1{font-size:28px;line-height:1.2;margin:0 0 8px}
.lathe h2{font-size:20px;margin:40px 0 8px;padding-top:10px;border-top:1px solid var(--line)}
.lathe h3{font-size:15px;margin:20px 0 6px}.lathe p{margin:6px 0;max-width:80ch}.lathe .dim{color:var(--dim)}
.lathe .said{background:var(--soft);border-left:4px solid var(--train);padding:8px 14px;font-size:16px;max-width:none}
.lathe nav{margin:14px 0 0;font-size:14px;line-height:2}.lathe nav a{margin-right:16px;white-space:nowrap}
.lathe a{color:var(--train)}.lathe .verdict{font-size:20px;margin:20px 0 10px}
.lathe .bar{display:flex;height:22px;gap:1px;border-radius:4px;overflow:hidden}
.lathe .bar i{flex:1 1 0;min-width:2px}
.lathe .legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 18px;padding:0;margin:8px 0;font-size:14px}
.lathe .legend i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px}
.lathe b,.lathe .n{font-variant-numeric:tabular-nums}
.lathe i.train{background:var(--train)}.lathe i.valid{background:var(--valid)}.lathe i.test{background:var(--test)}
.lathe i.same{background:var(--same)}.lathe i.leak{background:var(--leak)}.lathe i.broken{background:var(--warn)}
.lathe .first{list-style:none;padding:0;margin:8px 0}
.lathe .first li{border-left:4px solid var(--info);padding:3px 12px;margin:6px 0;max-width:90ch}
.lathe .first .bad{border-color:var(--bad)}.lathe .first .warn{border-color:var(--warn)}
.lathe .first .bad b{color:var(--bad)}.lathe .first .warn b{color:var(--warn)}
.lathe .scroll{overflow-x:auto;margin:8px 0}.lathe table{border-collapse:collapse;font-size:14px;overflow-wrap:normal}
.lathe th,.lathe td{border-bottom:1px solid var(--line);padding:5px 20px 5px 0;text-align:left;vertical-align:top}
.lathe th{color:var(--dim);font-weight:600;white-space:nowrap}.lathe .n{text-align:right;white-space:nowrap}
.lathe td pre{min-width:26ch}.lathe code,.lathe pre{font:13px/1.45 ui-monospace,monospace}
.lathe code{overflow-wrap:anywhere}
.lathe pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0}
.lathe .pair{display:grid;grid-template-columns:1fr 1fr;gap:10px;margin:10px 0 18px}
.lathe .pair h3{grid-column:1/-1;margin:6px 0 0;font-weight:600}.lathe .pair div{min-width:0}
.lathe .pair pre,.lathe .row{background:var(--soft);border-radius:6px;padding:10px 12px}
.lathe .pair .dim{font-size:13px;margin:0 0 3px}
.lathe .row{margin:4px 0 16px;unicode-bidi:plaintext}
.lathe mark{background:var(--learned);color:inherit;border-radius:3px;
box-decoration-break:clone;-webkit-box-decoration-break:clone}
.lathe .charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:10px 32px}
.lathe .charts div{min-width:0;max-width:560px}
.lathe svg{width:100%;height:auto;display:block}.lathe rect{fill:var(--train)}
.lathe svg path{stroke:var(--dim);fill:none}.lathe svg text{font:11px system-ui,sans-serif;fill:var(--dim)}
.lathe svg path.mark{stroke:var(--mark);stroke-dasharray:4 3}.lathe svg text.mark{fill:var(--mark)}
.lathe details{margin:30px 0 0}.lathe summary{cursor:pointer;color:var(--dim)}
@media (max-width:640px){.lathe{padding:18px 14px}.lathe h1{font-size:24px}.lathe .pair{grid-template-columns:1fr}
.lathe th,.lathe td{padding-right:12px}.lathe .wide tr{display:flex;flex-wrap:wrap;gap:0 12px;padding:6px 0;
border-bottom:1px solid var(--line)}.lathe .wide thead{display:none}.lathe .wide td{border:0;padding:0}
.lathe .wide td:first-child,.lathe .wide td:last-child{flex:1 0 100%}
.lathe .wide td{min-width:0;overflow-wrap:anywhere}}
[id^=root_metric_]{max-width:1228px;margin:0 auto;overflow-x:auto}
[id^=root_metric_]>*{min-width:860px;box-sizing:border-box}
"""
