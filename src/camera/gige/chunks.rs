//! Chunks: what a camera sends behind the pixels of a frame. Which chunk holds a feature, and
//! where in it, is in the camera's own description (GenICam XML).

use roxmltree::{Document, Node};

/// Where a number lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Of the chunk.
    pub id: u32,
    /// In bytes from the chunk's first, and how many: 1 to 8.
    pub offset: usize,
    pub length: usize,
    pub big_endian: bool,
}

/// After each chunk come its id and its length, four bytes each.
const LABEL: usize = 8;
/// A description that leads farther than this leads in a circle.
const MOST_LINKS: usize = 16;

/// Where the description `xml` says that the whole number `feature` is sent, which the setting `key`
/// names.
pub fn place(xml: &str, key: &str, feature: &str) -> Result<Place, String> {
    let document =
        Document::parse(xml).map_err(|error| format!("the camera's description: {error}"))?;
    let named = |name: &str| {
        document
            .descendants()
            .find(|node| node.attribute("Name") == Some(name))
            .ok_or_else(|| format!("the camera's description has no {name}, which {key} leads to"))
    };
    let mut node = named(feature)?;
    for _ in 0..MOST_LINKS {
        match (node.tag_name().name(), child(node, "pValue")) {
            ("IntReg", _) => return register(node, named(required(node, "pPort")?)?),
            ("Integer", Some(next)) => node = named(next)?,
            (kind, _) => {
                return Err(format!(
                    "{key} = {feature:?} is made by a {kind}; only whole registers are read"
                ));
            }
        }
    }
    Err(format!("{key} = {feature:?} leads in a circle in the camera's description"))
}

/// The number at `place` among the chunks at the end of a frame.
pub fn number(payload: &[u8], place: &Place) -> Result<u64, String> {
    let mut rest = payload;
    while let Some((before, label)) = rest.split_last_chunk::<LABEL>() {
        let [a, b, c, d, length @ ..] = *label;
        let length = u32::from_be_bytes(length) as usize;
        let Some(start) = before.len().checked_sub(length) else {
            return Err("its chunks are damaged: one is longer than the frame".to_owned());
        };
        let (earlier, chunk) = before.split_at(start);
        if u32::from_be_bytes([a, b, c, d]) == place.id {
            let bytes = chunk
                .get(place.offset..place.offset + place.length)
                .ok_or_else(|| format!("its chunk {:#x} has {length} bytes, too few", place.id))?;
            let more = |sum: u64, &byte: &u8| sum << 8 | u64::from(byte);
            return Ok(if place.big_endian {
                bytes.iter().fold(0, more)
            } else {
                bytes.iter().rev().fold(0, more)
            });
        }
        rest = earlier;
    }
    Err(format!(
        "it came without the chunk {:#x}; are ChunkModeActive and ChunkEnable set?",
        place.id
    ))
}

fn register(register: Node<'_, '_>, port: Node<'_, '_>) -> Result<Place, String> {
    let name = register.attribute("Name").unwrap_or_default();
    let length = whole(required(register, "Length")?)?;
    if !(1..=8).contains(&length) {
        return Err(format!("{name} has {length} bytes; 1 to 8 are a number"));
    }
    let id = required(port, "ChunkID")
        .map_err(|_| format!("{name} is no chunk: it is read from {:?}", port.attribute("Name")))?;
    let digits = id.trim_start_matches("0x").trim_start_matches("0X");
    let id = u32::from_str_radix(digits, 16).map_err(|_| format!("ChunkID {id:?} is no number"))?;
    Ok(Place {
        id,
        offset: whole(required(register, "Address")?)?,
        length,
        big_endian: child(register, "Endianess") == Some("BigEndian"),
    })
}

fn child<'a>(node: Node<'a, '_>, tag: &str) -> Option<&'a str> {
    node.children().find(|child| child.tag_name().name() == tag)?.text().map(str::trim)
}

fn required<'a>(node: Node<'a, '_>, tag: &str) -> Result<&'a str, String> {
    child(node, tag).ok_or_else(|| {
        format!("{:?} has no {tag} in the camera's description", node.attribute("Name"))
    })
}

fn whole(text: &str) -> Result<usize, String> {
    match text.strip_prefix("0x") {
        Some(digits) => usize::from_str_radix(digits, 16),
        None => text.parse(),
    }
    .map_err(|_| format!("{text:?} in the camera's description is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = r#"<?xml version="1.0"?>
<RegisterDescription xmlns="http://www.genicam.org/GenApi/Version_1_1">
  <Integer Name="ChunkEncoderValue"><pValue>EncoderReg</pValue></Integer>
  <IntReg Name="EncoderReg"><Address>0x4</Address><Length>4</Length><AccessMode>RO</AccessMode>
    <pPort>EncoderChunk</pPort><Sign>Unsigned</Sign><Endianess>BigEndian</Endianess></IntReg>
  <Port Name="EncoderChunk"><ChunkID>8a00</ChunkID></Port>
  <IntReg Name="ChunkCounterValue"><Address>0</Address><Length>8</Length><pPort>Counter</pPort></IntReg>
  <Port Name="Counter"><ChunkID>0x12</ChunkID></Port>
  <Integer Name="Width"><pValue>WidthReg</pValue></Integer>
  <IntReg Name="WidthReg"><Address>0x100</Address><Length>4</Length><pPort>Device</pPort></IntReg>
  <Port Name="Device"/>
  <SwissKnife Name="Computed"/>
  <Integer Name="Round"><pValue>Round</pValue></Integer>
  <Integer Name="Dangling"><pValue>Nothing</pValue></Integer>
</RegisterDescription>"#;

    fn chunk(id: u32, bytes: &[u8]) -> Vec<u8> {
        [bytes, &id.to_be_bytes(), &(bytes.len() as u32).to_be_bytes()].concat()
    }

    #[test]
    fn the_description_leads_to_the_chunk() {
        assert_eq!(
            place(XML, "encoder.chunk", "ChunkEncoderValue"),
            Ok(Place { id: 0x8a00, offset: 4, length: 4, big_endian: true })
        );
        assert_eq!(
            place(XML, "encoder.chunk", "ChunkCounterValue"),
            Ok(Place { id: 0x12, offset: 0, length: 8, big_endian: false })
        );
    }

    #[test]
    fn a_description_that_leads_to_no_chunk_is_told() {
        for (feature, says) in [
            ("ChunkLineStatusAll", "no ChunkLineStatusAll, which line_status.chunk leads to"),
            ("Dangling", "no Nothing"),
            ("Width", "WidthReg is no chunk"),
            ("Computed", "made by a SwissKnife"),
            ("Round", "in a circle"),
        ] {
            let error = place(XML, "line_status.chunk", feature).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!(
            place("<a", "encoder.chunk", "ChunkEncoderValue").unwrap_err().contains("description")
        );
    }

    #[test]
    fn a_number_is_found_among_the_chunks_behind_the_pixels() {
        let big = Place { id: 2, offset: 4, length: 4, big_endian: true };
        let little = Place { id: 3, offset: 0, length: 2, big_endian: false };
        let payload = [
            vec![9; 640],
            chunk(2, &[0, 0, 0, 0, 0xff, 0xee, 0xdd, 0xcc]),
            chunk(3, &[0x34, 0x12]),
            chunk(1, &[]),
        ]
        .concat();
        assert_eq!(number(&payload, &big), Ok(0xffee_ddcc));
        assert_eq!(number(&payload, &little), Ok(0x1234));
    }

    #[test]
    fn frames_without_the_chunk_or_with_damaged_ones_are_told() {
        let place = Place { id: 2, offset: 0, length: 4, big_endian: true };
        for (payload, says) in [
            (chunk(7, &[1, 2, 3, 4]), "without the chunk 0x2"),
            (vec![], "without the chunk 0x2"),
            (chunk(2, &[1, 2]), "2 bytes, too few"),
            (chunk(7, &[1])[1..].to_vec(), "damaged"),
        ] {
            let error = number(&payload, &place).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
