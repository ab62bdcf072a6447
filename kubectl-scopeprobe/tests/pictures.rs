//! Pictures of the shop, compared with those in `tests/pictures`. `SNAPSHOTS=overwrite` writes them again; look at them.

use snapbox::{Data, assert_data_eq, data::DataFormat};
use view::{read, render};

const SHOP: &str = include_str!("cmd/shop.in/shop.yaml");

#[test]
fn svg_of_the_shop_is_the_expected_picture() {
    let golden = Data::read_from(std::path::Path::new("tests/pictures/shop.svg"), Some(DataFormat::Text)).raw();
    assert_data_eq!(render::svg(&read::text(SHOP).unwrap()), golden);
}

#[test]
fn page_of_the_shop_is_the_expected_one() {
    let golden = Data::read_from(std::path::Path::new("tests/pictures/shop.html"), Some(DataFormat::Text)).raw();
    assert_data_eq!(render::html(&read::text(SHOP).unwrap()), golden);
}
