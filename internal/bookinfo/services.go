package bookinfo

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"sync"
)

// Details gives the service of facts about a book: GET /details/{id}.
func Details() http.Handler {
	mux := http.NewServeMux()
	withHealth(mux, "details")
	mux.HandleFunc("GET /details/{id}", knownProduct(func(w http.ResponseWriter, _ *http.Request, p Product) {
		writeJSON(w, http.StatusOK, BookDetails{
			ID: p.ID, Author: "William Shakespeare", Year: 1595, Type: "paperback", Pages: 200,
			Publisher: "PublisherA", Language: "English", ISBN10: "1234567890", ISBN13: "123-1234567890",
		})
	}))
	return mux
}

// BookDetails is what the details service says of a book.
type BookDetails struct {
	ID        int    `json:"id"`
	Author    string `json:"author"`
	Year      int    `json:"year"`
	Type      string `json:"type"`
	Pages     int    `json:"pages"`
	Publisher string `json:"publisher"`
	Language  string `json:"language"`
	ISBN10    string `json:"ISBN-10"`
	ISBN13    string `json:"ISBN-13"`
}

// BookRatings is what the ratings service says: stars from 1 to 5, by reviewer.
type BookRatings struct {
	ID      int            `json:"id"`
	Ratings map[string]int `json:"ratings"`
}

// Ratings gives the service of stars: GET and POST /ratings/{id}. What is posted
// is kept in memory.
func Ratings() http.Handler {
	var mu sync.Mutex
	kept := map[int]map[string]int{}
	for _, p := range products() {
		kept[p.ID] = map[string]int{"Reviewer1": 5, "Reviewer2": 4}
	}
	mux := http.NewServeMux()
	withHealth(mux, "ratings")
	mux.HandleFunc("GET /ratings/{id}", knownProduct(func(w http.ResponseWriter, _ *http.Request, p Product) {
		mu.Lock()
		ratings := maps.Clone(kept[p.ID])
		mu.Unlock()
		writeJSON(w, http.StatusOK, BookRatings{p.ID, ratings})
	}))
	mux.HandleFunc("POST /ratings/{id}", knownProduct(func(w http.ResponseWriter, r *http.Request, p Product) {
		given := map[string]int{}
		if err := json.NewDecoder(r.Body).Decode(&given); err != nil {
			problem(w, http.StatusBadRequest, "the body must be an object of reviewer and stars")
			return
		}
		for name, stars := range given {
			if name == "" || len(name) > maxName {
				problem(w, http.StatusBadRequest, fmt.Sprintf("a reviewer's name has 1 to %d bytes", maxName))
				return
			}
			if stars < 1 || stars > 5 {
				problem(w, http.StatusBadRequest, "stars go from 1 to 5")
				return
			}
		}
		mu.Lock()
		defer mu.Unlock()
		next := maps.Clone(kept[p.ID])
		maps.Copy(next, given)
		if len(next) > maxRatings {
			problem(w, http.StatusInsufficientStorage, "there are enough ratings of this book")
			return
		}
		kept[p.ID] = next
		writeJSON(w, http.StatusOK, BookRatings{p.ID, maps.Clone(next)})
	}))
	return mux
}

// Version is one of the three editions of the reviews service, told apart by
// their stars.
type Version string

// The versions: no stars, black ones, red ones.
const (
	V1 Version = "v1"
	V2 Version = "v2"
	V3 Version = "v3"
)

// colour of a version's stars; empty: it asks for none.
func (v Version) colour() string {
	return map[Version]string{V2: "black", V3: "red"}[v]
}

// BookReviews is what the reviews service says of a book.
type BookReviews struct {
	ID      int      `json:"id"`
	Version Version  `json:"version"`
	Reviews []Review `json:"reviews"`
}

// Review is one opinion.
type Review struct {
	Reviewer string  `json:"reviewer"`
	Text     string  `json:"text"`
	Rating   *Rating `json:"rating,omitempty"`
}

// Rating is the stars of a review, or why there are none.
type Rating struct {
	Stars int    `json:"stars,omitempty"`
	Color string `json:"color,omitempty"`
	Error string `json:"error,omitempty"`
}

// Reviews gives the service of opinions in one version: GET /reviews/{id}.
// ratings is the URL of the ratings service, which V1 does not need. It is an
// error when there is no such version or the URL is none.
func Reviews(version Version, ratings string) (http.Handler, error) {
	if version != V1 && version != V2 && version != V3 {
		return nil, fmt.Errorf("%q is no version of reviews; they are v1, v2 and v3", version)
	}
	if version != V1 {
		if err := serviceURL(ratings); err != nil {
			return nil, fmt.Errorf("reviews %s need the ratings: %w", version, err)
		}
	}
	asker := newAsker(reviewsTimeout)
	mux := http.NewServeMux()
	withHealth(mux, "reviews")
	mux.HandleFunc("GET /reviews/{id}", knownProduct(func(w http.ResponseWriter, r *http.Request, p Product) {
		reviews := BookReviews{ID: p.ID, Version: version, Reviews: []Review{
			{Reviewer: "Reviewer1", Text: "I lost count of who was whom before the second act, and did not want it back. Read it aloud, with friends."},
			{Reviewer: "Reviewer2", Text: "All of it would be over in a minute if one of them asked one question. That nobody does is the joke, and it holds."},
		}}
		if colour := version.colour(); colour != "" {
			var got BookRatings
			err := asker.ask(r, ratings+"/ratings/"+r.PathValue("id"), &got)
			for i := range reviews.Reviews {
				rating := &Rating{Error: "ratings are not to be had now"}
				if err == nil {
					rating = &Rating{Stars: got.Ratings[reviews.Reviews[i].Reviewer], Color: colour}
				}
				reviews.Reviews[i].Rating = rating
			}
		}
		writeJSON(w, http.StatusOK, reviews)
	}))
	return mux, nil
}
