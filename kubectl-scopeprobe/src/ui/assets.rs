//! Files of the page: `scripts/web` bundles those of `web/dist`; the others are sources.

/// File of the page.
pub struct Asset {
    /// Media type.
    pub media_type: &'static str,
    /// Content.
    pub content: &'static [u8],
}

/// Returns the file of a path below the token.
pub fn asset(path: &str) -> Option<Asset> {
    let (media_type, content): (_, &[u8]) = match path {
        "" => ("text/html; charset=utf-8", include_bytes!("../../web/src/index.html")),
        "app.js" => ("text/javascript; charset=utf-8", include_bytes!("../../web/dist/app.js")),
        "layout.js" => ("text/javascript; charset=utf-8", include_bytes!("../../web/dist/layout.js")),
        "app.css" => ("text/css; charset=utf-8", include_bytes!("../../web/src/app.css")),
        "licenses.txt" => ("text/plain; charset=utf-8", include_bytes!("../../web/dist/licenses.txt")),
        _ => return None,
    };
    Some(Asset { media_type, content })
}
