// What headers are removed, set and added, and with which values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "proxy_wasm.hpp"

namespace headers {

using Values = std::map<std::string, std::string>;
// Looks a header of the request up.
using Lookup = std::function<std::optional<std::string>(const std::string &name)>;

inline bool in_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || (c != 0 && std::strchr("!#$%&'*+-.^_`|~", c) != nullptr);
}

// A value may have no control characters: a line break would begin another header.
inline bool in_value(char c) { return (static_cast<unsigned char>(c) >= ' ' && c != 0x7f) || c == '\t'; }

inline bool is_value(std::string_view s) { return std::ranges::all_of(s, in_value); }

inline bool has(std::initializer_list<std::string_view> list, std::string_view s) { return std::ranges::find(list, s) != list.end(); }

// Reads the name of a header into lower case. What comes back is empty or says what is
// wrong.
inline std::string read_name(std::string &name) {
  for (char &c : name) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  std::string_view plain = name;
  if (plain.starts_with(':')) plain.remove_prefix(1);
  if (plain.empty() || !std::ranges::all_of(plain, in_name)) return "is no name of a header";
  return "";
}

// A value with places to be filled in: %REQ(name)%, %RESP(name)% and %PROPERTY(a.b)%,
// and %% for a percent sign.
class Template {
 public:
  // Reads one, for a response or for a request.
  std::string read(std::string_view text, bool response) {
    if (!is_value(text)) return "must not contain control characters";
    while (!text.empty()) {
      size_t percent = text.find('%');
      if (percent != 0) {
        literal(text.substr(0, percent));
        text.remove_prefix(std::min(percent, text.size()));
        continue;
      }
      size_t end = text.find('%', 1);
      if (end == std::string_view::npos) return "a % stands alone: write %% for a percent sign";
      std::string wrong = place(text.substr(1, end - 1), response);
      if (!wrong.empty()) return wrong;
      text.remove_prefix(end + 1);
    }
    return "";
  }

  // Fills it in; nothing if a place has nothing to be filled with.
  std::optional<std::string> fill(const Lookup &request) const {
    std::string value;
    for (const Piece &p : pieces_) {
      std::optional<std::string> more = p.kind == Kind::literal ? p.text : p.kind == Kind::request ? request(p.text) : p.kind == Kind::response ? proxy_wasm::response_headers.get(p.text) : property(p.text);
      if (!more || more->empty() || !is_value(*more)) return std::nullopt;
      value += *more;
    }
    return value;
  }

  // Adds the names of the request's headers that it needs.
  void needs(std::set<std::string> &names) const {
    for (const Piece &p : pieces_) {
      if (p.kind == Kind::request) names.insert(p.text);
    }
  }

 private:
  enum class Kind { literal, request, response, property };
  struct Piece {
    Kind kind;
    std::string text;
  };

  void literal(std::string_view text) { pieces_.push_back({Kind::literal, std::string(text)}); }

  // Reads what stands between two percent signs.
  std::string place(std::string_view inner, bool response) {
    if (inner.empty()) {
      literal("%");
      return "";
    }
    size_t open = inner.find('(');
    if (open == std::string_view::npos || !inner.ends_with(')')) return quoted(inner) + " is not known: there are REQ(name), RESP(name) and PROPERTY(path)";
    std::string_view word = inner.substr(0, open);
    std::string name(inner.substr(open + 1, inner.size() - open - 2));
    if (word == "PROPERTY") {
      if (name.empty()) return quoted(inner) + " names no property";
      std::ranges::replace(name, '.', '\0');
      pieces_.push_back({Kind::property, name});
      return "";
    }
    if (word != "REQ" && word != "RESP") return quoted(inner) + " is not known: there are REQ(name), RESP(name) and PROPERTY(path)";
    if (word == "RESP" && !response) return quoted(inner) + " is for responses: there is none yet";
    if (std::string wrong = read_name(name); !wrong.empty()) return quoted(inner) + " " + wrong;
    pieces_.push_back({word == "REQ" ? Kind::request : Kind::response, name});
    return "";
  }

  static std::string quoted(std::string_view inner) { return "%" + std::string(inner) + "%"; }

  // What the proxy knows. It gives numbers as eight bytes; texts have no control
  // characters, and no number that is met has none.
  static std::optional<std::string> property(const std::string &path) {
    pw_text bytes;
    bool there = pw_get_property(proxy_wasm::str(path), &bytes);
    auto value = proxy_wasm::taken_if(there, std::move(bytes));
    if (value && value->size() == 8 && !is_value(*value)) {
      int64_t n;
      std::memcpy(&n, value->data(), sizeof n);
      return std::to_string(n);
    }
    return value;
  }

  std::vector<Piece> pieces_;
};

struct Rule {
  std::string name;
  Template value;
};

// Side is what happens to requests, or to responses.
struct Side {
  std::vector<std::string> remove;
  std::vector<Rule> set, add;

  // A header that is to be set and for which there is no value is removed: what a client
  // sent under that name must not be taken for ours.
  void apply(const proxy_wasm::Headers &map, const Lookup &request) const {
    std::vector<std::optional<std::string>> values;
    for (const Rule &r : set) values.push_back(r.value.fill(request));
    for (const Rule &r : add) values.push_back(r.value.fill(request));
    for (const std::string &name : remove) map.remove(name);
    auto value = values.begin();
    for (const Rule &r : set) {
      if (*value) {
        map.replace(r.name, **value);
      } else if (!r.name.starts_with(':')) {
        map.remove(r.name);
      }
      value++;
    }
    for (const Rule &r : add) {
      if (*value) map.add(r.name, **value);
      value++;
    }
  }

  std::string read(proxy_wasm::Json side, bool response) {
    if (!side.is_object()) return ": must be an object";
    for (const auto &item : side.items()) {
      std::string wrong;
      if (item.name == "remove") {
        wrong = read_remove(item.value);
      } else if (item.name == "set" || item.name == "add") {
        wrong = read_rules(item.value, item.name == "set" ? set : add, item.name == "set", response);
      } else {
        wrong = ": is not known";
      }
      if (!wrong.empty()) return "." + item.name + wrong;
    }
    return "";
  }

 private:
  std::string read_remove(proxy_wasm::Json list) {
    if (!list.is_array()) return ": must be a list of names";
    remove.clear();
    for (const auto &item : list.items()) {
      std::string at = "[" + std::to_string(remove.size()) + "]: ";
      auto name = item.value.string();
      if (!name) return at + "must be text";
      if (std::string wrong = read_name(*name); !wrong.empty()) return at + wrong;
      if (name->starts_with(':')) return at + "no message can do without it";
      if (std::string wrong = framing(*name); !wrong.empty()) return at + wrong;
      remove.push_back(*name);
    }
    return "";
  }

  std::string read_rules(proxy_wasm::Json map, std::vector<Rule> &into, bool replaces, bool response) {
    if (!map.is_object()) return ": must be an object";
    into.clear();
    for (const auto &item : map.items()) {
      std::string name = item.name, at = "." + item.name + ": ";
      if (std::string wrong = read_name(name); !wrong.empty()) return at + wrong;
      if (std::string wrong = framing(name); !wrong.empty()) return at + wrong;
      if (name.starts_with(':') && !replaces) return at + "there can be only one";
      if (name.starts_with(':') && !has(response ? std::initializer_list<std::string_view>{":status"} : std::initializer_list<std::string_view>{":authority", ":method", ":path"}, name)) return at + "cannot be set";
      std::vector<proxy_wasm::Json> values;
      if (item.value.is_array() && !replaces) {
        for (const auto &value : item.value.items()) values.push_back(value.value);
      } else {
        values.push_back(item.value);
      }
      for (const proxy_wasm::Json &v : values) {
        auto text = v.string();
        if (!text) return at + (replaces ? "must be text" : "must be text or a list of texts");
        Rule rule{name, {}};
        if (std::string wrong = rule.value.read(*text, response); !wrong.empty()) return at + wrong;
        into.push_back(std::move(rule));
      }
    }
    return "";
  }

  // The headers by which the proxy knows where a message ends are its own.
  static std::string framing(std::string_view name) {
    if (name == "host") return "is :authority here";
    if (has({"connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}, name)) return "is the proxy's own";
    return "";
  }
};

struct Rules {
  Side request, response;
  std::set<std::string> kept;  // the request's headers that responses need

  // Reads a configuration. What comes back is empty, or says what is wrong, with the path.
  std::string read(std::string_view text) {
    auto config = proxy_wasm::Json::parse(text);
    if (!config || !config->is_object()) return "must be a JSON object";
    for (const auto &item : config->items()) {
      bool is_response = item.name == "response";
      if (!is_response && item.name != "request") return item.name + ": is not known";
      Side &side = is_response ? response : request;
      side = Side();
      if (std::string wrong = side.read(item.value, is_response); !wrong.empty()) return item.name + wrong;
    }
    for (const Rule &r : response.set) r.value.needs(kept);
    for (const Rule &r : response.add) r.value.needs(kept);
    return "";
  }
};

}  // namespace headers
