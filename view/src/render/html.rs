//! A page with the picture and a table of the edges, in one file, without scripts.

use super::{
    Names,
    svg::{escaped, svg},
    table,
};
use crate::map::Map;

const STYLE: &str = "body{font-family:system-ui,sans-serif;margin:1.5rem;color:#111;background:#fff}\
    .picture{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}\
    th,td{border:1px solid #999;padding:.25rem .5rem;text-align:left}\
    @media print{.picture{overflow:visible}.picture svg{max-width:100%;height:auto}}";

/// Returns the page.
#[must_use]
pub fn html(map: &Map) -> String {
    let names = Names::of(map);
    let picture = svg(map);
    let cells = |tag: &str, cells: &[String]| {
        let cell = |cell: &String| format!("<{tag}>{}</{tag}>", escaped(cell));
        format!("<tr>{}</tr>\n", cells.iter().map(cell).collect::<Vec<_>>().concat())
    };
    let header = table::HEADER.map(str::to_owned);
    let head = cells("th scope=\"col\"", &header).replace("</th scope=\"col\">", "</th>");
    let rows: Vec<String> = map.edges.iter().map(|edge| cells("td", &table::row(edge, &names))).collect();
    let rows = rows.concat();
    let caveats: Vec<String> = map.caveats.iter().map(|caveat| format!("<li>{}</li>\n", escaped(caveat))).collect();
    let caveats = caveats.concat();
    let gaps = if caveats.is_empty() { String::new() } else { format!("<h2>Incomplete</h2>\n<ul>\n{caveats}</ul>\n") };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta \
         http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<meta \
         name=\"viewport\" content=\"width=device-width\">\n<title>Topology</title>\n<style>{STYLE}</style>\n</head>\n\
         <body>\n<h1>Topology</h1>\n<div class=\"picture\" role=\"region\" aria-label=\"Picture\" \
         tabindex=\"0\">\n{picture}</div>\n{gaps}<h2>Edges</h2>\n<table>\n<thead>\n{head}</thead>\n\
         <tbody>\n{rows}</tbody>\n</table>\n</body>\n</html>\n"
    )
}
