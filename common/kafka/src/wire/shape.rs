//! Schemas of the answers, as far as needed to see that every array and string of a message lies within its bytes.
//!
//! The codec calls `Vec::with_capacity` with the count on the wire: a count that the message cannot hold would abort
//! the process. For a message that passed [`Shape::check`] it reserves a small multiple of the message's size at most.
//! Source: `clients/src/main/resources/common/message/*Response.json` of Apache Kafka.

use bytes::{Buf, Bytes};

/// One message: since which version it is flexible (compact lengths, tagged fields), and its fields.
pub(crate) struct Shape {
    flexible: i16,
    fields: &'static [Field],
}

/// A field and the versions that have it.
struct Field {
    min: i16,
    max: i16,
    kind: Kind,
}

enum Kind {
    /// So many bytes.
    Fixed(usize),
    /// String, null allowed: compact length if flexible, else two bytes.
    Text,
    /// Byte string, null allowed: compact length if flexible, else four bytes.
    Blob,
    /// Structure, with tagged fields if flexible.
    Struct(&'static [Field]),
    /// Array, null allowed.
    List(&'static Kind),
    /// Tagged field of the structure it stands in, by number.
    Tag(u32, &'static Kind),
}

const NEVER: i16 = i16::MAX;

const fn fixed(bytes: usize) -> Field {
    since(0, Kind::Fixed(bytes))
}

const fn text() -> Field {
    since(0, Kind::Text)
}

const fn since(min: i16, kind: Kind) -> Field {
    within(min, i16::MAX, kind)
}

const fn within(min: i16, max: i16, kind: Kind) -> Field {
    Field { min, max, kind }
}

const INT32S: Kind = Kind::List(&Kind::Fixed(4));
const NODE_ENDPOINTS: Kind = Kind::List(&Kind::Struct(&[fixed(4), text(), fixed(4), text()]));
const FEATURES: Kind = Kind::List(&Kind::Struct(&[text(), fixed(4)]));
/// Topics, of each the partitions with their error codes.
const CODES: Kind = Kind::List(&Kind::Struct(&[text(), since(0, Kind::List(&Kind::Struct(&[fixed(4 + 2)])))]));

/// The answer's header: correlation id, and from header version 1 on tagged fields.
pub(super) static HEADER: Shape = Shape { flexible: 1, fields: &[fixed(4)] };

pub(super) static PRODUCE: Shape = Shape {
    flexible: 9,
    fields: &[
        since(
            0,
            Kind::List(&Kind::Struct(&[
                within(0, 12, Kind::Text),
                since(13, Kind::Fixed(16)),
                since(
                    0,
                    Kind::List(&Kind::Struct(&[
                        fixed(4 + 2 + 8 + 8),
                        since(5, Kind::Fixed(8)),
                        since(8, Kind::List(&Kind::Struct(&[fixed(4), text()]))),
                        since(8, Kind::Text),
                        since(10, Kind::Tag(0, &Kind::Struct(&[fixed(8)]))),
                    ])),
                ),
            ])),
        ),
        fixed(4),
        since(10, Kind::Tag(0, &NODE_ENDPOINTS)),
    ],
};

pub(super) static FETCH: Shape = Shape {
    flexible: 12,
    fields: &[
        fixed(4),
        since(7, Kind::Fixed(2 + 4)),
        since(
            0,
            Kind::List(&Kind::Struct(&[
                within(0, 12, Kind::Text),
                since(13, Kind::Fixed(16)),
                since(
                    0,
                    Kind::List(&Kind::Struct(&[
                        fixed(4 + 2 + 8 + 8),
                        since(5, Kind::Fixed(8)),
                        since(0, Kind::List(&Kind::Struct(&[fixed(16)]))),
                        since(11, Kind::Fixed(4)),
                        since(0, Kind::Blob),
                        since(12, Kind::Tag(0, &Kind::Struct(&[fixed(12)]))),
                        since(12, Kind::Tag(1, &Kind::Struct(&[fixed(8)]))),
                        since(12, Kind::Tag(2, &Kind::Struct(&[fixed(12)]))),
                    ])),
                ),
            ])),
        ),
        since(16, Kind::Tag(0, &NODE_ENDPOINTS)),
    ],
};

pub(super) static LIST_OFFSETS: Shape = Shape {
    flexible: 6,
    fields: &[
        since(2, Kind::Fixed(4)),
        since(
            0,
            Kind::List(&Kind::Struct(&[
                text(),
                since(0, Kind::List(&Kind::Struct(&[fixed(4 + 2 + 8 + 8), since(4, Kind::Fixed(4))]))),
            ])),
        ),
    ],
};

pub(super) static METADATA: Shape = Shape {
    flexible: 9,
    fields: &[
        since(3, Kind::Fixed(4)),
        since(0, Kind::List(&Kind::Struct(&[fixed(4), text(), fixed(4), text()]))),
        text(),
        fixed(4),
        since(
            0,
            Kind::List(&Kind::Struct(&[
                fixed(2),
                text(),
                since(10, Kind::Fixed(16)),
                fixed(1),
                since(
                    0,
                    Kind::List(&Kind::Struct(&[
                        fixed(2 + 4 + 4),
                        since(7, Kind::Fixed(4)),
                        since(0, INT32S),
                        since(0, INT32S),
                        since(5, INT32S),
                    ])),
                ),
                since(8, Kind::Fixed(4)),
            ])),
        ),
        within(8, 10, Kind::Fixed(4)),
        since(13, Kind::Fixed(2)),
    ],
};

pub(super) static SASL_HANDSHAKE: Shape =
    Shape { flexible: NEVER, fields: &[fixed(2), since(0, Kind::List(&Kind::Text))] };

pub(super) static SASL_AUTHENTICATE: Shape =
    Shape { flexible: 2, fields: &[fixed(2), text(), since(0, Kind::Blob), since(1, Kind::Fixed(8))] };

pub(super) static API_VERSIONS: Shape = Shape {
    flexible: 3,
    fields: &[
        fixed(2),
        since(0, Kind::List(&Kind::Struct(&[fixed(6)]))),
        since(1, Kind::Fixed(4)),
        since(3, Kind::Tag(0, &FEATURES)),
        since(3, Kind::Tag(1, &Kind::Fixed(8))),
        since(3, Kind::Tag(2, &FEATURES)),
        since(3, Kind::Tag(3, &Kind::Fixed(1))),
    ],
};

pub(super) static CREATE_TOPICS: Shape = Shape {
    flexible: 5,
    fields: &[
        fixed(4),
        since(
            0,
            Kind::List(&Kind::Struct(&[
                text(),
                since(7, Kind::Fixed(16)),
                fixed(2),
                text(),
                since(5, Kind::Fixed(4 + 2)),
                since(5, Kind::List(&Kind::Struct(&[text(), text(), fixed(3)]))),
                since(5, Kind::Tag(0, &Kind::Fixed(2))),
            ])),
        ),
    ],
};

pub(super) static DESCRIBE_CONFIGS: Shape = Shape {
    flexible: 4,
    fields: &[
        fixed(4),
        since(
            0,
            Kind::List(&Kind::Struct(&[
                fixed(2),
                text(),
                fixed(1),
                text(),
                since(
                    0,
                    Kind::List(&Kind::Struct(&[
                        text(),
                        text(),
                        fixed(3),
                        since(0, Kind::List(&Kind::Struct(&[text(), text(), fixed(1)]))),
                        since(3, Kind::Fixed(1)),
                        since(3, Kind::Text),
                    ])),
                ),
            ])),
        ),
    ],
};

pub(super) static CREATE_PARTITIONS: Shape =
    Shape { flexible: 2, fields: &[fixed(4), since(0, Kind::List(&Kind::Struct(&[text(), fixed(2), text()])))] };

pub(super) static DESCRIBE_PRODUCERS: Shape = Shape {
    flexible: 0,
    fields: &[
        fixed(4),
        since(
            0,
            Kind::List(&Kind::Struct(&[
                text(),
                since(
                    0,
                    Kind::List(&Kind::Struct(&[
                        fixed(4 + 2),
                        text(),
                        since(0, Kind::List(&Kind::Struct(&[fixed(8 + 4 + 4 + 8 + 4 + 8)]))),
                    ])),
                ),
            ])),
        ),
    ],
};

pub(super) static FIND_COORDINATOR: Shape = Shape {
    flexible: 3,
    fields: &[since(1, Kind::Fixed(4)), fixed(2), since(1, Kind::Text), fixed(4), text(), fixed(4)],
};

pub(super) static DELETE_RECORDS: Shape = Shape {
    flexible: 2,
    fields: &[
        fixed(4),
        since(0, Kind::List(&Kind::Struct(&[text(), since(0, Kind::List(&Kind::Struct(&[fixed(4 + 8 + 2)])))]))),
    ],
};

pub(super) static INIT_PRODUCER_ID: Shape = Shape { flexible: 2, fields: &[fixed(4 + 2 + 8 + 2)] };

pub(super) static ADD_PARTITIONS_TO_TXN: Shape = Shape { flexible: 3, fields: &[fixed(4), since(0, CODES)] };

pub(super) static END_TXN: Shape = Shape { flexible: 3, fields: &[fixed(4 + 2)] };

pub(super) static WRITE_TXN_MARKERS: Shape =
    Shape { flexible: 1, fields: &[since(0, Kind::List(&Kind::Struct(&[fixed(8), since(0, CODES)])))] };

pub(super) static INCREMENTAL_ALTER_CONFIGS: Shape = Shape {
    flexible: 1,
    fields: &[fixed(4), since(0, Kind::List(&Kind::Struct(&[fixed(2), text(), fixed(1), text()])))],
};

impl Shape {
    /// Walks one message and leaves in `rest` what follows it. `Err` says what does not fit.
    pub(super) fn check(&self, rest: &mut Bytes, version: i16) -> Result<(), String> {
        Walk { rest, version, flexible: version >= self.flexible }.structure(self.fields).map_err(str::to_owned)
    }
}

struct Walk<'a> {
    rest: &'a mut Bytes,
    version: i16,
    flexible: bool,
}

type Walked<T = ()> = Result<T, &'static str>;

impl Walk<'_> {
    fn structure(&mut self, fields: &'static [Field]) -> Walked {
        for field in fields {
            if self.has(field) && !matches!(field.kind, Kind::Tag(..)) {
                self.value(&field.kind)?;
            }
        }
        if self.flexible { self.tags(fields) } else { Ok(()) }
    }

    fn has(&self, field: &Field) -> bool {
        (field.min..=field.max).contains(&self.version)
    }

    fn value(&mut self, kind: &'static Kind) -> Walked {
        match kind {
            Kind::Fixed(bytes) => self.skip(*bytes),
            Kind::Text => {
                let length = if self.flexible { self.compact()? } else { self.number(2)? };
                self.skip(length.unwrap_or(0))
            }
            Kind::Blob => {
                let length = if self.flexible { self.compact()? } else { self.number(4)? };
                self.skip(length.unwrap_or(0))
            }
            Kind::Struct(fields) => self.structure(fields),
            Kind::List(element) => {
                let count = if self.flexible { self.compact()? } else { self.number(4)? }.unwrap_or(0);
                // Every element is at least one byte long.
                if count > self.rest.len() {
                    return Err("an array is longer than the message");
                }
                (0..count).try_for_each(|_| self.value(element))
            }
            Kind::Tag(_, value) => self.value(value),
        }
    }

    /// The codec reads a known tagged field by its own lengths, so these must agree with the field's size.
    fn tags(&mut self, fields: &'static [Field]) -> Walked {
        let mut left = self.varint()?;
        if usize::try_from(left).map_or(true, |left| left > self.rest.len()) {
            return Err("more tagged fields than the message holds");
        }
        while left > 0 {
            left -= 1;
            let tag = self.varint()?;
            let size = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
            if size > self.rest.len() {
                return Err("a tagged field is longer than the message");
            }
            let after = self.rest.len() - size;
            let known = fields.iter().filter(|field| self.has(field)).find_map(|field| match &field.kind {
                Kind::Tag(number, value) if *number == tag => Some(*value),
                Kind::Tag(..) | Kind::Fixed(_) | Kind::Text | Kind::Blob | Kind::Struct(_) | Kind::List(_) => None,
            });
            match known {
                Some(value) => self.value(value)?,
                None => self.skip(size)?,
            }
            if self.rest.len() != after {
                return Err("a tagged field does not fill its size");
            }
        }
        Ok(())
    }

    fn skip(&mut self, bytes: usize) -> Walked {
        if bytes > self.rest.len() {
            return Err("a field is longer than the message");
        }
        self.rest.advance(bytes);
        Ok(())
    }

    /// A signed length of two or four bytes, -1 for null.
    fn number(&mut self, bytes: usize) -> Walked<Option<usize>> {
        if self.rest.len() < bytes {
            return Err("a length is cut off");
        }
        match self.rest.get_int(bytes) {
            -1 => Ok(None),
            length => usize::try_from(length).map(Some).map_err(|_| "a length is negative"),
        }
    }

    /// A length plus one, 0 for null.
    fn compact(&mut self) -> Walked<Option<usize>> {
        let length = self.varint()?;
        Ok(length.checked_sub(1).map(|length| usize::try_from(length).unwrap_or(usize::MAX)))
    }

    /// An unsigned number of at most 32 bits in at most five bytes.
    fn varint(&mut self) -> Walked<u32> {
        let mut value: u32 = 0;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.rest.try_get_u8().map_err(|_| "a number is cut off")?;
            let bits = u32::from(byte & 0x7f);
            if shift == 28 && bits > 0x0f {
                return Err("a number is too large");
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number is too long")
    }
}

#[cfg(test)]
#[path = "shape_test.rs"]
mod tests;
